import pytest

from metering.xids import XID_TABLE, XID_TABLE_VERSION, XidClass, is_application_xid, is_hardware_xid


def of_class(xid_class: XidClass) -> set[int]:
    return {xid for xid, row in XID_TABLE.items() if row.xid_class is xid_class}


def test_version_1_of_the_table_sorts_the_xids_as_billing_alerts_and_health_expect() -> None:
    assert XID_TABLE_VERSION == 1
    assert of_class(XidClass.APPLICATION) == {13, 31, 43, 45, 68, 109}
    assert of_class(XidClass.FATAL) == {48, 62, 64, 74, 79, 95, 119, 120}
    assert of_class(XidClass.MEMORY) == {63, 92}
    assert of_class(XidClass.RESTART_APP) == {94}


def test_every_xid_has_a_meaning_and_an_action() -> None:
    for xid, row in XID_TABLE.items():
        assert (row.xid, bool(row.meaning), bool(row.action)) == (xid, True, True)


@pytest.mark.parametrize("xid", [13, 31, 43, 68, 109])
def test_the_applications_xids_stay_its_own_beside_hardware_xids(xid: int) -> None:
    assert is_application_xid(xid, others_in_window=[48])


def test_45_is_the_applications_unless_the_hardware_failed_in_the_same_window() -> None:
    assert is_application_xid(45)
    assert is_application_xid(45, others_in_window=[45, 31])
    assert not is_application_xid(45, others_in_window=[31, 63])


def test_an_xid_that_is_not_listed_blames_nobody() -> None:
    assert not is_application_xid(9999)
    assert not is_hardware_xid(9999)
