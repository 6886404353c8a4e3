"""`admin apply`: what is wrong in a file is told by line, differences are shown, and made only as they were shown."""

import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cli.centrefile import load
from cli.tomllines import line_of, lines_of
from tests.cli.conftest import Home
from tests.cli.peer import Json, Peer, page, problem

SHIPPED = Path(__file__).parents[2] / "deploy" / "centre.toml"
FILE = """\
# a centre
[accounts.acme]
weight = 2
guarantee = { H100 = 32 }

[accounts."acme/vision".limit]
H100 = 16

[[users]]
name = "mei"
account = "acme"
"""
CHANGES: list[Json] = [
    {
        "section": "accounts",
        "change": "change",
        "id": "acme",
        "fields": [
            {"name": "guarantee.H100", "before": 16, "after": 32},
            {"name": "running_limit", "before": 5, "after": None},
        ],
        "note": None,
    },
    {"section": "users", "change": "create", "id": "mei in acme", "fields": [], "note": None},
    {"section": "accounts", "change": "keep", "id": "old", "fields": [], "note": "it has jobs"},
]


def answered(peer: Peer, changes: int = 2) -> None:
    items = CHANGES if changes else []
    peer.answers(
        "POST", "/v1/admin/apply", page("CentreChangeList", items, digest="d1", is_applied=False, changes=changes)
    )


def test_a_file_is_sent_as_the_api_takes_it_shown_first_and_made_as_shown(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(FILE)
    answered(peer)
    done = home.turnstile("admin", "apply", "-f", "centre.toml", "-y")
    tried, made = peer.requests("POST", "/v1/admin/apply")
    assert (tried.query, made.query) == ({"dry_run": ["true"]}, {})
    assert tried.json["sections"] == {
        "accounts": [
            {"id": "acme", "weight": 2, "guarantee": {"H100": 32}},
            {"id": "acme/vision", "limit": {"H100": 16}},
        ],
        "users": [{"user": "mei", "account": "acme"}],
    }
    assert (tried.json["prune"], made.json["expect"]) == (False, "d1")
    assert done.out == (
        "~ accounts acme\n"
        "    guarantee.H100      16 → 32\n"
        "    running_limit       5 → -\n"
        "+ users mei in acme\n"
        "= accounts old  kept: it has jobs\n"
        "2 changes made\n"
    )


def test_a_dry_run_makes_nothing_and_no_changes_are_said_so(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(FILE)
    answered(peer)
    assert home.turnstile("admin", "apply", "-f", "centre.toml", "--dry-run").out.endswith(
        "2 changes, none made: this was a dry run\n"
    )
    assert len(peer.requests("POST", "/v1/admin/apply")) == 1
    answered(peer, changes=0)
    assert home.turnstile("admin", "apply", "-f", "centre.toml", "--prune").out == "no changes\n"
    assert peer.requests("POST", "/v1/admin/apply")[-1].json["prune"] is True


def test_nothing_is_made_unasked_where_nobody_can_be_asked(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(FILE)
    answered(peer)
    assert home.turnstile("admin", "apply", "-f", "centre.toml").code == 2
    assert len(peer.requests("POST", "/v1/admin/apply")) == 1


def test_all_that_is_wrong_in_a_file_is_told_by_line_before_anything_is_sent(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(
        '[acounts.x]\n[accounts.acme]\nwieght = 2\nweight = 0\nguarantee = 8\npending = "many"\nsuspended = 1\n'
        '[[users]]\nname = "mei"\n[users.more]\n'
    )
    done = home.turnstile("admin", "apply", "-f", "centre.toml")
    assert (done.code, peer.requests("POST", "/v1/admin/apply")) == (3, [])
    assert done.err == (
        "error: centre.toml has 8 problems\n"
        "  the rest was not checked: a section cannot be read\n"
        "  line 1  acounts: unknown section, did you mean 'accounts'?\n"
        "  line 3  wieght: unknown key, did you mean 'weight'?\n"
        "  line 4  weight: must be at least 1, and 0 is not\n"
        "  line 5  guarantee: must be a table of GPUs by class, as in { H100 = 32 }\n"
        "  line 6  pending: must be a whole number, or 'none'\n"
        "  line 7  suspended: must be true or false\n"
        "  line 8  account: is required\n"
        "  line 10  more: unknown key; there are name, account, role, high\n"
    )
    (home.path / "centre.toml").write_text("[accounts\n")
    assert "is not TOML" in home.turnstile("admin", "apply", "-f", "centre.toml").err
    assert home.turnstile("admin", "apply", "-f", "absent.toml").code == 4


def test_what_the_server_finds_wrong_is_told_by_the_lines_of_the_file(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(FILE)
    wrong = [
        {"field": "users.0.account", "message": "there is no account acme"},
        {"field": "accounts.1.limit.H100", "message": "no GPU class 'H100'"},
        {"field": "accounts.0.guarantee.H100", "message": "32 H100 are more than is left"},
    ]
    peer.answers("POST", "/v1/admin/apply", problem("invalid", 422, "3 problems", problems=wrong))
    done = home.turnstile("admin", "apply", "-f", "centre.toml", "-y")
    assert done.code == 3
    assert done.err == (
        "error: centre.toml has 3 problems\n"
        "  line 4  acme: guarantee.H100: 32 H100 are more than is left\n"
        "  line 7  acme/vision: limit.H100: no GPU class 'H100'\n"
        "  line 11  users 0: account: there is no account acme\n"
    )


def test_what_is_wrong_in_a_file_s_form_and_what_the_server_finds_are_told_at_once(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(
        "[accounts.acme]\nwieght = 2\nguarantee = { H100 = 99 }\n[accounts.beta]\nlimit = 8\n"
        '[accounts."beta/x"]\nguarantee = { H100 = 9 }\n[[users]]\nname = "mei"\n'
        '[[users]]\nname = "ada"\naccount = "acne"\n'
    )
    wrong = [
        {"field": "users.0.account", "message": "there is no account acne"},
        {"field": "accounts.0.guarantee.H100", "message": "99 H100 are more than is left"},
        {"field": "accounts.2.guarantee.H100", "message": "its limit is 5 H100"},  # by the limit that is to go
    ]
    peer.answers("POST", "/v1/admin/apply", problem("invalid", 422, "3 problems", problems=wrong))
    form = (
        "  line 2  wieght: unknown key, did you mean 'weight'?\n",
        "  line 5  limit: must be a table of GPUs by class, as in { H100 = 32 }\n",
        "  line 8  account: is required\n",
    )
    done = home.turnstile("admin", "apply", "-f", "centre.toml", "-y", "--prune")
    assert done.code == 3
    assert done.err == (
        "error: centre.toml has 5 problems\n"
        f"{form[0]}  line 3  acme: guarantee.H100: 99 H100 are more than is left\n"
        f"{form[1]}{form[2]}  line 12  users 1: account: there is no account acne\n"
    )
    (asked,) = peer.requests("POST", "/v1/admin/apply")
    assert asked.query == {"dry_run": ["true"]}
    assert asked.json["prune"] is False
    peer.answers("POST", "/v1/admin/apply", problem("not_allowed", 403, "not for you"))
    alone = home.turnstile("admin", "apply", "-f", "centre.toml", "-y")
    assert alone.code == 3
    head = "error: centre.toml has 3 problems\n  the rest was not checked: not for you\n"
    assert alone.err == head + "".join(form)


def test_the_example_that_ships_can_be_read() -> None:
    found = load(str(SHIPPED))
    assert {name: len(entries) for name, entries in found.sections.items()} == {"accounts": 4, "users": 2}


def test_what_the_example_shows_of_pools_and_budgets_can_be_read_too(home: Home) -> None:
    marked = SHIPPED.read_text().partition("# [[pools]]")[1:]
    (home.path / "more.toml").write_text("".join(marked).replace("# [[", "[[").replace("\n# ", "\n"))
    found = load(str(home.path / "more.toml"))
    assert {name: len(entries) for name, entries in found.sections.items()} == {"pools": 1, "budgets": 2}


def test_pools_and_budgets_are_sent_with_amounts_and_times_as_the_api_takes_them(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text(
        '[[pools]]\nname = "ib"\nnodes = ["h1"]\npaused = true\nreason = "cables"\n'
        '[[budgets]]\naccount = "acme"\nlimit = 5000\n'
        '[[budgets]]\naccount = "zeta"\nperiod = "fixed"\nlimit = "10.50 eur"\nsoft = true\n'
        "from = 2026-11-01T00:00:00Z\nto = 2027-02-01T01:00:00+01:00\n"
    )
    answered(peer)
    assert home.turnstile("admin", "apply", "-f", "centre.toml", "--dry-run").code == 0
    assert peer.requests("POST", "/v1/admin/apply")[0].json["sections"] == {
        "pools": [{"name": "ib", "nodes": ["h1"], "is_paused": True, "reason": "cables"}],
        "budgets": [
            {"account": "acme", "limit": {"amount": "5000", "currency": None}},
            {
                "account": "zeta",
                "period": "fixed",
                "limit": {"amount": "10.50", "currency": "EUR"},
                "hard": False,
                "from_at": "2026-11-01T00:00:00Z",
                "to_at": "2027-02-01T00:00:00Z",
            },
        ],
    }
    (home.path / "centre.toml").write_text(
        'price_book = "prices.toml"\n[[pools]]\nnodes = "h1"\n'
        '[[budgets]]\naccount = "acme"\nlimit = 1.5\nfrom = "soon"\nto = 7\noverdraft = "much"\n'
    )
    assert home.turnstile("admin", "apply", "-f", "centre.toml").err == (
        "error: centre.toml has 7 problems\n"
        "  line 1  price_book: another verb does this: turnstile admin prices import, then publish\n"
        "  line 2  name: is required\n"
        '  line 3  nodes: must be a list of nodes, as in ["gpu-001", "gpu-002"]\n'
        '  line 6  limit: must be an amount: 5000, "1250.50" or "5000 EUR"\n'
        "  line 7  from: 'soon' is not a time; say 2026-11-01\n"
        "  line 8  to: must be a time, as in 2026-11-01\n"
        '  line 9  overdraft: \'much\' is not an amount: say 5000, "1250.50" or "5000 EUR"\n'
    )


def test_a_weight_of_nothing_is_told_with_what_the_server_finds_wrong(home: Home, peer: Peer) -> None:
    (home.path / "centre.toml").write_text("[accounts.acme]\nweight = 0\nguarantee = { H100 = 99 }\n")
    wrong = [
        {"field": "accounts.0.weight", "message": "a weight must be at least 1, and 0 is not"},
        {"field": "accounts.0.guarantee.H100", "message": "99 H100 are more than is left"},
    ]
    peer.answers("POST", "/v1/admin/apply", problem("invalid", 422, "2 problems", problems=wrong))
    assert home.turnstile("admin", "apply", "-f", "centre.toml", "-y").err == (
        "error: centre.toml has 2 problems\n"
        "  line 2  acme: weight: a weight must be at least 1, and 0 is not\n"
        "  line 3  acme: guarantee.H100: 99 H100 are more than is left\n"
    )
    answered(peer)
    done = home.turnstile("admin", "apply", "-f", "centre.toml", "-y")
    assert (done.code, len(peer.requests("POST", "/v1/admin/apply"))) == (3, 2), "nothing is made of what is wrong"


def test_lines_are_those_of_keys_tables_and_values_over_several_lines() -> None:
    text = (
        'a = """\n[not.a.table]\nb = 1\n"""\nc = [ # ]\n  "]", \'x\',\n  { d = 1 },\n]\n[e."f.g"]\nh.i = 1 # [x]\n'
        "[[k]]\nl = 'it''s'\n[[k]]\nl = 2\n[k.m]\nn = 3\n"
    ).replace("'it''s'", "'its'")
    tomllib.loads(text)
    assert lines_of(text) == {
        ("a",): 1,
        ("c",): 5,
        ("e", "f.g"): 9,
        ("e", "f.g", "h", "i"): 10,
        ("k", 0): 11,
        ("k", 0, "l"): 12,
        ("k", 1): 13,
        ("k", 1, "l"): 14,
        ("k", 1, "m"): 15,
        ("k", 1, "m", "n"): 16,
    }
    assert line_of(lines_of(text), ("k", 1, "m", "n", "deep")) == 16
    assert line_of({}, ("x",)) == 1


words = st.text("ab_-", min_size=1, max_size=4)
values = st.one_of(
    st.integers(0, 9).map(str),
    st.just('"""\n x = [\n"""'),
    st.just("[\n 1,\n 2 ]"),
    st.just('{ q = "}" }'),
    st.just("'#'"),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, st.lists(st.tuples(words, values), max_size=4)), max_size=5))
def test_every_key_of_any_file_stands_where_it_was_written(tables: list[tuple[str, list[tuple[str, str]]]]) -> None:
    written: dict[tuple[str | int, ...], int] = {}
    text = ""
    for name, keys in dict(tables).items():
        written[name,] = text.count("\n") + 1
        text += f"[{name}]\n"
        for key, value in dict(keys).items():
            written[name, key] = text.count("\n") + 1
            text += f"{key} = {value} # note = [\n" if "\n" not in value else f"{key} = {value}\n"
    tomllib.loads(text)
    assert lines_of(text) == written
