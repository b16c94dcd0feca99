"""Write the table of all options into docs/options.md, from the fields' descriptions and the composed values.

python scripts/option_table.py
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from mbpo_cli.config.compose import make_config
from mbpo_cli.config.typed import Config, options_in, words

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"

# Together they choose every component that has options, with no values tuned for an environment.
COMMON = [
    "env=gym",
    "env.id=any",
    "model/reward=deterministic",
    "logger=[tensorboard,csv,wandb,mlflow,trackio]",
]
VARIANTS = {
    "sac": ["mbpo/model_rollout_options/noise_options=gaussian"],
    "td3": ["mbpo/model_rollout_options/noise_options=gaussian"],
    "ddpg": ["mbpo/model_rollout_options/noise_options=gaussian"],
    "dqn": ["mbpo/model_rollout_options/noise_options=epsilon_greedy"],
}


def table() -> str:
    """Return all options as a Markdown table; the agent is named where values differ between agents."""
    rows: dict[str, tuple[str, str]] = {}
    defaults: dict[str, dict[str, str]] = {}
    for agent, choices in VARIANTS.items():
        for key, hint, meaning, value in options_in(make_config(*COMMON, f"agent={agent}", *choices)):
            if key.endswith("._target_") or key in ("env.id", "env.name", "agent.name"):
                continue
            matlab = ", ".join(name for name in meaning.matlab if not name.startswith("rl"))
            rows.setdefault(key, (f"{meaning.text} | {words(hint, meaning)}", matlab))
            defaults.setdefault(key, {})[agent] = shown(value)
    lines = ["| key | meaning | value | default | MATLAB |", "|---|---|---|---|---|"]
    for key, (described, matlab) in sorted(rows.items(), key=lambda row: _section(row[0])):
        lines.append(f"| `{key}` | {described} | {_default(defaults[key])} | {matlab} |")
    return "\n".join(lines)


def _section(key: str) -> int:
    sections = [field.name for field in fields(Config)]
    return sections.index(key.partition(".")[0])


def _default(by_agent: dict[str, str]) -> str:
    """Return the value if all agents agree on it, else each value with its agents."""
    agents_of: dict[str, list[str]] = {}
    for agent, value in by_agent.items():
        agents_of.setdefault(value, []).append(agent)
    if list(agents_of.values()) == [list(VARIANTS)]:
        return next(iter(agents_of))
    return "; ".join(f"{', '.join(agents)}: {value}" for value, agents in agents_of.items())


def shown(value: Any) -> str:
    """Return a value as it is written in YAML."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def with_table(text: str) -> str:
    """Return the page's text with a fresh table."""
    return with_part(text, BEGIN, table(), END)


def with_part(text: str, begin: str, part: str, end: str) -> str:
    """Return a page's text with a new part between two marks."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{part}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
