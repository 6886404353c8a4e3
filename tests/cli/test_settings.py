"""The daemon's settings: what overrides what, and all problems at once."""

from pathlib import Path

import pytest

from cli.daemon.settings import SettingsProblem, load, reference

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_variables_override_the_file_and_flags_override_both(tmp_path: Path) -> None:
    file = tmp_path / "turnstile.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:1"\nbody_limit_bytes = 5\n[node]\npool = "file"\n')
    environment = {"TURNSTILE_SERVER_LISTEN": "127.0.0.1:2", "TURNSTILE_NODE_POOL": "variable", "TURNSTILE_URL": "x"}
    settings = load(file, environment, {"node.pool": "flag"})
    assert (settings.server.listen, settings.server.body_limit_bytes, settings.node.pool) == ("127.0.0.1:2", 5, "flag")


def test_all_problems_are_said_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "turnstile.toml"
    file.write_text('nonsense = 1\n[server]\nlistn = "x"\nbody_limit_bytes = "many"\n[metering]\nzone = "Mars/Base"\n')
    with pytest.raises(SettingsProblem) as found:
        load(file, {"TURNSTILE_SERVER_LISTN": "y"}, {"executor.kind": "magic"})
    assert found.value.problems == [
        "environment: TURNSTILE_SERVER_LISTN names no setting; did you mean TURNSTILE_SERVER_LISTEN?",
        "nonsense: unknown key",
        "server.listn: unknown key, did you mean 'listen'?",
        "server.body_limit_bytes: must be a whole number, not 'many'",
        "executor.kind: must be one of local, simulated, not 'magic'",
        "metering.zone: 'Mars/Base' is not in the tz database; write one such as Asia/Shanghai",
    ]


@pytest.mark.parametrize("value", [True, "nan", "inf", "1.5", "", [1]])
def test_a_whole_number_is_a_whole_number(value: object) -> None:
    with pytest.raises(SettingsProblem, match=r"server\.body_limit_bytes: must be a whole number"):
        load(None, {}, {"server.body_limit_bytes": value})


def test_a_missing_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(SettingsProblem, match="No such file or directory; check the path given with --config"):
        load(tmp_path / "none.toml", {})


def test_the_reference_page_is_what_the_settings_are() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference()
