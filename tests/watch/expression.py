"""Takes expressions of Prometheus apart, as far as it takes to ask what they rest on."""

import re

# The longest first, so that none is taken for the beginning of another.
_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
      | (?P<word>[A-Za-z_:][A-Za-z0-9_:]*)
      | (?P<number>[0-9.]+(?:[a-zA-Z][a-zA-Z0-9]*)?)
      | (?P<sign>==|!=|>=|<=|=~|!~|[-+*/%^<>=(){}\[\],@:])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
_SETS = {"and", "or", "unless"}
_COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}
_OPEN, _CLOSE = set("({["), set(")}]")


def operands(expression):
    """What has to have data so that an expression can: the sides of its comparisons and of `and`, `or` and `unless`,
    and what `absent` looks for. The number that something is compared with is none of them."""
    expression = expression.strip()
    tokens = _tokens(expression)
    for splits in [_SETS, _COMPARISONS]:
        if places := [token for token in _outer(tokens) if token[0] in splits]:
            return [found for part in _parts(expression, places) for found in operands(part)]
    if inner := _inside(expression, tokens):
        return operands(inner)
    return [expression] if any(_is_selector(tokens, at) for at in range(len(tokens))) else []


def _tokens(expression):
    found, at = [], 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        assert match, f"{expression[at:]!r} is not understood, in {expression!r}"
        if match.lastgroup != "space":
            found.append((match.group(), match.start(), match.end(), match.lastgroup))
        at = match.end()
    return found


def _outer(tokens):
    """The tokens that stand in no brackets."""
    depth = 0
    for token in tokens:
        depth -= token[0] in _CLOSE
        if depth == 0 and token[3] != "string":
            yield token
        depth += token[0] in _OPEN


def _parts(expression, places):
    start, parts = 0, []
    for _, begin, end, _ in places:
        parts.append(expression[start:begin])
        start = end
    parts.append(expression[start:])
    # What is said of the labels by which sides are matched is part of the operator.
    return [re.sub(r"^\s*(bool\b)?\s*((on|ignoring)\s*\([^)]*\))?\s*((group_left|group_right)\s*(\([^)]*\))?)?", "", part) for part in parts]


def _inside(expression, tokens):
    """What stands in the brackets around all of it, if there are any, or in those of `absent`."""
    outer = list(_outer(tokens))
    is_absent = outer and outer[0][0] == "absent"
    brackets = outer[1:] if is_absent else outer
    if [token[0] for token in brackets] in (["(", ")"], ["("]) and tokens[-1][0] == ")":
        return expression[brackets[0][2] : tokens[-1][1]]
    return None


def _is_selector(tokens, at):
    """Whether a token names a metric: a word that is not called, and is no label."""
    text, _, _, kind = tokens[at]
    after = tokens[at + 1][0] if at + 1 < len(tokens) else ""
    return kind == "word" and after != "(" and ("_" in text or ":" in text or text == "up")


def _check():
    cases = {
        'up{job="a"} == 0': ['up{job="a"}'],
        "a_x > 0.5 * min by (job) (b_y)": ["a_x", "0.5 * min by (job) (b_y)"],
        "a_x > 14.4 * 0.001 and b_y > 14.4 * 0.001": ["a_x", "b_y"],
        "(a_x > 2 * b_y + 0.05 or c_z > 1) and d_w > 0.05": ["a_x", "2 * b_y + 0.05", "c_z", "d_w"],
        'absent(a_x{job="a"} == 1)': ['a_x{job="a"}'],
        "a_x == 0 unless on (job, instance) b_y == 1": ["a_x", "b_y"],
        "abs(a_x) > 1": ["abs(a_x)"],
        "time() - a_x > 300": ["time() - a_x"],
        "sum by (job) (rate(a_x[5m])) / (b_y > 0) > 0.05": ["sum by (job) (rate(a_x[5m])) / (b_y > 0)"],
        'rate(a_x{r=~"a|b(c"}[5m]) / (sum(b_y) > 0)': ['rate(a_x{r=~"a|b(c"}[5m]) / (sum(b_y) > 0)'],
    }
    for expression, expected in cases.items():
        assert operands(expression) == expected, (expression, operands(expression))


_check()
