"""What the gateway's file says of limits, prices, budgets and the guard."""

from decimal import Decimal
from pathlib import Path

import pytest

from mcp_middleware.gateway.banner import capabilities
from mcp_middleware.gateway.sections.guard import GuardConfig
from mcp_middleware.gateway.sections.limits import LimitsConfig, ServerLimits
from mcp_middleware.ratelimit import AgentLimits, Budget, PartLimits, Price, Prices, Rate

from .configurations import SMALL, loaded, refused

WHOLE = """\
servers:
  search:
    url: http://127.0.0.1:9001/mcp
    limits:
      requests: 30/minute
      tools: {render: {tokens: {rate: 900/minute, burst: 90}}, "s*": {requests: 1/second}}
  files: {url: "http://127.0.0.1:9002/mcp"}
auth: off
limits:
  requests: 60/minute
  tokens: {rate: 50000/minute, burst: 9000}
  concurrency: 8
  agents: {"batch-*": {requests: off, concurrency: 99}, trusted: {tokens: off, concurrency: off}}
  tools: {"s*": {requests: 10/minute}, "*": {tokens: 20000/hour}}
  initial_output_tokens: 0
  image_tokens: 800
  audio_tokens: 900
  counter: estimate
  mode: shadow
  refuse_with: tool_result
  cut_streams: true
prices:
  currency: EUR
  rules:
    - {servers: [search], tools: ["s*"], input: 15, output: "3.00", call: 0.002}
    - {call: 0}
budgets:
  - {period: month, amount: 50, agents: ["batch-*"]}
  - {period: day, amount: "7.50", action: warn}
guard:
  addresses: 600/minute
  tools: {render: 30/minute}
  trusted_proxies: [10.0.0.0/8, "::1"]
"""


def test_everything_is_read_as_the_members_take_it(tmp_path: Path) -> None:
    config = loaded(tmp_path, WHOLE)
    limits = config.limits
    assert limits == LimitsConfig(
        requests=Rate("60/minute"),
        tokens=Rate("50000/minute", 9000),
        concurrency=8,
        agents={
            "batch-*": AgentLimits(requests=None, concurrency=99),
            "trusted": AgentLimits(tokens=None, concurrency=None),
        },
        tools={"s*": PartLimits(Rate("10/minute")), "*": PartLimits(tokens=Rate("20000/hour"))},
        servers={
            "search": ServerLimits(
                all=PartLimits(Rate("30/minute")),
                tools={"render": PartLimits(tokens=Rate("900/minute", 90)), "s*": PartLimits(Rate("1/second"))},
            )
        },
        initial_output_tokens=0,
        image_tokens=800,
        audio_tokens=900,
        mode="shadow",
        refuse_with="tool_result",
        cut_streams=True,
    )
    assert list(limits.of_tools("search")) == ["render", "s*", "*"]
    assert limits.of_tools("search")["s*"] == PartLimits(Rate("1/second"))
    assert limits.of_tools("files") == limits.tools
    assert (limits.of_server("search"), limits.of_server("files")) == (PartLimits(Rate("30/minute")), None)
    assert config.prices == Prices(
        "EUR",
        [
            Price(["search"], ["s*"], input=Decimal(15), output=Decimal("3.00"), call=Decimal("0.002")),
            Price(call=Decimal(0)),
        ],
    )
    assert config.budgets == (
        Budget("month", Decimal(50), agents=("batch-*",)),
        Budget("day", Decimal("7.50"), agents=("*",), action="warn"),
    )
    assert config.guard == GuardConfig(
        addresses="600/minute", tools={"render": "30/minute"}, trusted_proxies=("10.0.0.0/8", "::1")
    )


def test_a_server_may_be_limited_where_agents_are_not(tmp_path: Path) -> None:
    text = SMALL.replace("/mcp}", "/mcp, limits: {tokens: 100/minute}}")
    limits = loaded(tmp_path, text).limits
    assert limits is not None
    assert (limits.hold_for("a"), limits.hold_for("b")) == (True, False)
    assert limits == LimitsConfig(servers={"a": ServerLimits(all=PartLimits(tokens=Rate("100/minute")))})
    assert "limits is not given" not in " ".join(loaded(tmp_path, text).warnings)


def test_prices_need_no_limits_and_off_is_off(tmp_path: Path) -> None:
    priced = loaded(tmp_path, SMALL + "prices: {currency: EUR, rules: [{call: 1}]}\nlimits: {refuse_with: tool_result}")
    assert priced.limits == LimitsConfig(refuse_with="tool_result")
    for off in ("off", "false", "'off'"):
        limits = loaded(tmp_path, SMALL + f"limits: {{requests: 1/second, mode: {off}}}").limits
        assert limits is not None
        assert limits.mode == "off"
        assert loaded(tmp_path, SMALL + f"limits: {{mode: {off}}}").limits == LimitsConfig(mode="off")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limits: {concurrency: 0}", "gateway.yaml:4: limits.concurrency is 0 (a number); it must be a whole number"),
        ("limits: {concurrency: many}", "limits.concurrency is 'many'; it must be a whole number from 1, or off"),
        ("limits: {mode: shadow}", "gateway.yaml:4: limits limits nothing; give requests, tokens, concurrency"),
        ("limits: {mode: dry}", "limits.mode is 'dry'; it must be enforce, shadow or off"),
        ("limits: {requests: fast}", "of an amount and periods from 1, a mapping with rate and burst, or off"),
        (
            "limits: {agents: {x: {concurrency: 0}}}",
            "limits.agents.x.concurrency is 0 (a number); it must be a whole number from 1, or off",
        ),
        ("limits: {refuse_with: text}", "limits.refuse_with is 'text'; it must be error or tool_result"),
        ("limits: {cut_streams: 1}", "limits.cut_streams is 1 (a number); it must be true or false"),
        ("limits: {counter: gpt}", "limits.counter is 'gpt'; it must be estimate or o200k_base or cl100k_base"),
        ("limits: {image_tokens: -1}", "limits.image_tokens is -1 (a number); it must be a whole number from 0"),
        ("limits: {tools: {}, requests: off}", "limits limits nothing"),
        ("limits: {agents: {'a*': {}, b: {tokens: off}}}", "limits limits nothing"),
        ("limits: {tools: {t: {}}}", "gateway.yaml:4: limits.tools.t is of no use without requests or tokens; give"),
        ("limits: {tools: {t: {requests: off}}}", "limits.tools.t.requests is off (a boolean); it must be a rate such"),
        (
            "limits: {tools: {'': {requests: 1/second}}}",
            "limits.tools has the key ''; it must be a glob of tools' names",
        ),
        (
            "limits: {agents: {'!ci': {requests: 1/second}}}",
            "limits.agents has the key '!ci'; it must be a glob of client ids, not empty: * is any run of characters",
        ),
        ("guard: {tools: {'a{b,c}': 1/second}}", "guard.tools has the key 'a{b,c}'; it must be a glob of tools' names"),
        (
            "prices: {currency: EUR, rules: [{call: 1, servers: ['[a]']}]}",
            "prices.rules[0].servers[0] is '[a]'; it must be a glob of servers' names",
        ),
        ("limits: {servers: {a: {requests: 1/second}}}", "limits.servers is no key of this place"),
        ("prices: {rules: [{call: 1}]}", "gateway.yaml:4: prices.currency is missing"),
        ("prices: {currency: '€', rules: [{call: 1}]}", "prices.currency is '€'; it must be a code such as EUR"),
        ("prices: {currency: EUR, rules: []}", "prices.rules is an empty list; it must be a list with at least one"),
        ("prices: {currency: EUR, rules: [{tools: [a]}]}", "prices.rules[0] is of no use without input or output or"),
        ("prices: {currency: EUR, rules: [{call: -1}]}", "prices.rules[0].call is -1 (a number); it must be a number"),
        (
            "prices: {currency: EUR, rules: [{call: '1,5'}]}",
            "prices.rules[0].call is '1,5'; it must be a number from 0",
        ),
        (
            "prices: {currency: EUR, rules: [{input: 1e-7}]}",
            "prices.rules[0].input is '1e-7'; it must be a number from",
        ),
        ("prices: {currency: EUR, rules: [{input: '0.0000001'}]}", "with at most 6 decimals"),
        ("prices: {currency: EUR, rules: [{output: 010}]}", "prices.rules[0].output is 010 (a number); it must be"),
        (
            "prices: {currency: EUR, rules: [{call: 1, servers: [b]}]}",
            "gateway.yaml:4: prices.rules[0].servers has the glob 'b', which matches no server; the servers are a",
        ),
        ("prices: {currency: EUR, rules: [{call: 1}, {call: 1}]}", "prices.rules[1] repeats prices.rules[0]; keep one"),
        ("budgets: [{period: day, amount: 1}]", "gateway.yaml:4: budgets is of no use without prices"),
        ("budgets: [{period: week, amount: 1}]", "budgets[0].period is 'week'; it must be day or month"),
        ("budgets: [{period: day}]", "budgets[0].amount is missing; it must be a number above 0"),
        ("budgets: [{period: day, amount: 0}]", "budgets[0].amount is 0 (a number); it must be a number above 0"),
        ("budgets: {period: day, amount: 1}", "budgets is a mapping; it must be a list"),
        ("guard: {}", "gateway.yaml:4: guard is of no use without addresses or tools; give one"),
        ("guard: {addresses: 600}", "guard.addresses is 600 (a number); it must be a rate such as 60/minute"),
        ("guard: {addresses: {rate: 1/second, burst: 2}}", "guard.addresses is a mapping; it must be a rate such as"),
        ("guard: {tools: {t: 1/second}, trusted_proxies: ['::1']}", "guard has trusted_proxies without addresses"),
        (
            "guard: {addresses: 1/second, trusted_proxies: [10.0.0.1/8]}",
            "guard.trusted_proxies[0] is '10.0.0.1/8'; it must",
        ),
        ("guard: {addresses: 1/second, trusted_proxies: [proxy]}", "be an address, or a network such as 10.0.0.0/8"),
    ],
)
def test_a_wrong_line_is_named_with_value_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    found = refused(tmp_path, SMALL + text + "\n")
    assert any(said in line for line in found), found


def test_a_wrong_limit_of_a_server_is_named_there(tmp_path: Path) -> None:
    for limits, said in (
        ("{}", "gateway.yaml:2: servers.a.limits is of no use without requests or tokens or tools; give one"),
        ("{concurrency: 1}", "servers.a.limits.concurrency is no key of this place; allowed are requests, tokens"),
        ("{requests: 60}", "servers.a.limits.requests is 60 (a number); it must be a rate such as 60/minute"),
    ):
        found = refused(tmp_path, SMALL.replace("/mcp}", f"/mcp, limits: {limits}}}"))
        assert any(said in line for line in found), found


def test_a_vocabulary_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bpe_openai", None)
    assert any(
        line.endswith("install mcp-middleware[exact], or leave it out")
        for line in refused(tmp_path, SMALL + "limits: {tokens: 1/second, counter: o200k_base}\n")
    )


def test_no_value_of_the_environment_is_in_an_error(tmp_path: Path) -> None:
    text = """\
limits: {requests: 1/second, concurrency: "${S}", mode: "${S}", counter: "${S}", tools: {t: {tokens: "${S}"}}}
prices: {currency: "${S}", rules: [{servers: ["${S}"], input: "${S}", call: "${S}"}]}
budgets: [{period: "${S}", amount: "${S}", agents: ["${S}"], action: "${S}"}]
guard: {addresses: "${S}", tools: {t: "${S}"}, trusted_proxies: ["${S}"]}
"""
    lines = refused(tmp_path, SMALL + text, S="hunter2")
    assert len(lines) == 12
    assert not any("hunter2" in line for line in lines)


def test_what_limits_less_than_it_seems_is_warned_of(tmp_path: Path) -> None:
    def warned(text: str) -> list[str]:
        ours = ("limits", "prices", "budgets", "guard")
        return [one for one in loaded(tmp_path, SMALL + text).warnings if one.startswith(ours)]

    rate, price = "limits: {requests: 1/second}\n", "prices: {currency: EUR, rules: [{call: 1}]}\n"
    assert warned(rate + price) == []
    assert warned("") == ["limits is not given: one agent can take all that the servers have"]
    assert warned("limits: {requests: 1/second, mode: shadow}") == [
        "limits.mode is shadow: limits are only reported, and what does not fit goes on"
    ]
    assert warned("limits: {requests: 1/second, mode: off}\n" + price) == [
        "limits.mode is off: nothing is limited, and no call has a cost"
    ]
    assert warned(rate + price + "budgets: [{period: day, amount: 1, action: warn}]") == [
        "budgets[0] only warns, and no budget refuses those agents: they can spend more"
    ]
    refusing = "{period: month, amount: 9}"
    assert warned(rate + price + f"budgets: [{{period: day, amount: 1, action: warn}}, {refusing}]") == []
    for proxy in ("0.0.0.0/0", "::/0", "128.0.0.0/1"):
        assert warned(rate + f"guard: {{addresses: 1/second, trusted_proxies: ['{proxy}']}}") == [
            f"guard.trusted_proxies has {proxy}: callers there can name any address as theirs"
        ]
    assert warned(rate + "guard: {addresses: 1/second, trusted_proxies: ['10.0.0.0/8', 'fc00::/7']}") == []
    behind = "public_url: http://mcp.example.com\n" + rate + "guard: {addresses: 1/second"
    assert [one for one in warned(behind + "}") if one.startswith("guard.trusted_proxies is not given")]
    assert warned(behind + ", trusted_proxies: ['127.0.0.1']}") == []
    free = WHOLE.replace("    - {call: 0}\n", "")
    assert "prices has no rule for files: no budget counts what is called there" in loaded(tmp_path, free).warnings


def test_several_workers_count_budgets_together_or_not_at_all(tmp_path: Path) -> None:
    several = "workers: 2\nsessions: {keys: ['" + "A" * 43 + "='], per_agent: off}\n"
    priced = "prices: {currency: EUR, rules: [{call: 1}]}\nbudgets: [{period: day, amount: 1}]\n"
    assert refused(tmp_path, SMALL + several + priced)[0].endswith(
        "it must be 1, or state be a Redis URL, or limits.mode be off: each worker would count by itself"
    )
    for off in ("limits: {requests: 1/second, mode: off}\n", "limits: {mode: off}\n"):
        assert loaded(tmp_path, SMALL + several + priced + off).workers == 2


def test_the_banner_says_what_is_limited_and_what_it_costs(tmp_path: Path) -> None:
    told = capabilities(loaded(tmp_path, WHOLE))
    assert told["limits"] == (
        "in shadow mode: 60/minute requests, 50000/minute (at most 9000 at once) tokens, 8 at once, others for "
        "batch-*, trusted, more for tools s*, *, more for servers search"
    )
    assert told["costs"] == ("prices in EUR; at most 50 a month for batch-*; a warning at 7.50 a day for *")
    assert told["guard"] == "600/minute of an address, 30/minute calls of render"
    off = capabilities(loaded(tmp_path, WHOLE.replace("mode: shadow", "mode: off")))
    assert (off["limits"], off["costs"]) == ("off", "off")
    assert {capabilities(loaded(tmp_path, SMALL))[word] for word in ("limits", "costs", "guard")} == {"off"}
