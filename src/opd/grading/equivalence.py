"""When two final answers are the same, as far as their text tells: no parser, no sympy.

``by_rule`` is the rule of Rethinking OPD's evaluators (spec, section 6.2), written anew: LaTeX is
normalised as is usual for MATH (Hendrycks et al. 2021); an integer has to be given as that integer
and a fraction as that fraction; tuples, intervals and lists go element by element, in order.
``by_math_verify`` settles only what math-verify is sure to find. Where the text does not settle it,
either returns the pairs that are left to compare, all of which have to be equal.
"""

import re
from fractions import Fraction
from itertools import pairwise

AnswerPair = tuple[str, str]

# Longer answers are prose or repetition: wrong unless they are the ground truth word for word.
LONGEST_CHARS = 1000
# The rule asks sympy only about elements that are shorter and have no more different letters.
SYMPY_CHARS = 200
SYMPY_LETTERS = 2
DEEPEST_TUPLE = 20

UNITS = (
    "degree|cm|centimeter|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard|"
    "cent|dollar|unit"
)
UNICODE = str.maketrans({"−": "-", "–": "-", "π": "\\pi ", "∞": "\\infty ", "°": ""})
REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        # Other ways to write the same thing.
        (r", ?\\! ?|\{ ?, ?\}", ""),
        (r"\\(?:left|right|bigg?|Bigg?|displaystyle)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\[!,;: ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:geqslant|ge)(?![a-zA-Z])", r"\\geq"),
        (r"\\(?:leqslant|le)(?![a-zA-Z])", r"\\leq"),
        (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])|\\?[%$]", ""),
        # Lists in words, units after a number, text.
        (r" ?\\(?:text|mbox) ?\{ ?(?:and|or) ?\} ?| (?:and|or) ", ","),
        (r"(?<=[\d})]) ?\\(?:text|mathrm|mbox) ?\{ ?([ie]) ?\}", r"\1"),
        (r"(?<=[\d})]) ?\\(?:text|mathrm|mbox) ?\{[^{}]*\} ?(?:\^ ?\{?\d\}?)? ?\.? ?$", ""),
        (rf"(?<=[\d}})]) ?(?:{UNITS})(?:e?s)? ?(?:\^ ?\{{?\d\}}?)? ?\.? ?$", ""),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox) ?\{([^{}]*)\}", r"\1"),
        # Braces and digits that may be left out, fractions in a line.
        (r"\\frac ?(\d)", r"\\frac{\1}"),
        (r"\\frac ?(\{(?:[^{}]|\{[^{}]*\})*\}) ?(\d)", r"\\frac\1{\2}"),
        (r"\\sqrt ?(\w)", r"\\sqrt{\1}"),
        (r"([_^]) ?\{ ?(\w) ?\}", r"\1\2"),
        (r"(?<=\d)\.(?!\d)", ""),
        (r"(?<![\d.])\.(?=\d)", "0."),
        (r"(?<![\w}^./)])(\d+) ?/ ?(\d+)(?![\w./{(^])", r"\\frac{\1}{\2}"),
        (r"^ ?[a-zA-Z]{1,2} ?=([^=]*)$", r"\1"),
        # White space, but for the one that ends a command's name.
        (r"(?:(\\[a-zA-Z]+) (?=[a-zA-Z]))| ", lambda m: f"{m[1]} " if m[1] else ""),
        (r"\.$", ""),
        (r"^\\\{((?:(?!\\\}).)*)\\\}$", r"\1"),
        # Small letters, but for commands: \Delta is another than \delta.
        (r"(\\[a-zA-Z]+)|[A-Z]", lambda m: m[1] or m[0].lower()),
    )
]

PLAIN_NUMBER = re.compile(r"[-+]?\d{1,300}(\.\d{1,300})?")
NUMBER = re.compile(
    r"([-+]?)(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d+))?"
    r"(?:e([-+]?\d{1,3})|(?:\\times|\\cdot|\*)10\^(\d|\{[-+]?\d{1,3}\}))?"
)
POWER_OF_TEN = re.compile(r"^([-+]?)10\^(?=\{-\d{1,3}\}$)")  # a whole one has to be written out
FRACTION = re.compile(r"([-+]?)\\frac\{([-+]?)(\d+)\}\{([-+]?)(\d+)\}")
COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)")
SYMPY_COMMANDS = {"\\frac", "\\sqrt", "\\pi", "\\cdot", "\\times", "\\div"}
# Other signs, exponents of two digits, towers of exponents, and 1e5, whose e is not Euler's.
EXOTIC = re.compile(r"[^a-z0-9 +\-*/^(){}\[\].!]|\^\{?[-+]?\d\d|\^(?:\w|\{[^}]*\}?)\^|\de[-+]?\d")


def by_rule(given: str, truth: str) -> bool | list[AnswerPair]:
    """The rule's verdict, or the pairs that sympy has to find equal (normalised LaTeX)."""
    if len(given) > LONGEST_CHARS or len(truth) > LONGEST_CHARS:
        return given == truth
    ours, theirs = normalise(given), normalise(truth)
    return bool(ours and theirs) and _compare(ours, theirs, 0)


def by_math_verify(given: str, truth: str) -> bool | list[AnswerPair]:
    """The verdict that math-verify is sure to reach, or the pair for it (without ``$``).

    It rounds decimals to six places, so only those further apart are settled here.
    """
    if len(given) > LONGEST_CHARS or len(truth) > LONGEST_CHARS:
        return given == truth
    # Its grammar has neither dollars nor a full stop at the end.
    ours, theirs = (re.sub(r"\\?\$|\n", " ", text).strip().rstrip(" .") for text in (given, truth))
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    if PLAIN_NUMBER.fullmatch(ours) and PLAIN_NUMBER.fullmatch(theirs):
        apart = abs(Fraction(ours) - Fraction(theirs))
        if apart == 0 or apart > Fraction(2, 10**6):
            return apart == 0
    return [(ours, theirs)]


def normalise(answer: str) -> str:
    """Remove what does not change a LaTeX answer: spacing, sizes, units, %, $, degree, case."""
    text = answer.translate(UNICODE)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return text


def number(text: str) -> Fraction | None:
    """Value of a normalised decimal, with thousands commas and a power of ten; None: it is none."""
    match = NUMBER.fullmatch(POWER_OF_TEN.sub(r"\g<1>1\\times10^", text))
    if match is None:
        return None
    decimals = match[3] or ""
    power = int(match[4] or (match[5] or "0").strip("{}")) - len(decimals)
    value = int(match[2].replace(",", "") + decimals) * Fraction(10) ** power
    return -value if match[1] == "-" else value


def fraction(text: str) -> tuple[int, int] | None:
    """Numerator and denominator of a normalised fraction of integers as it stands, the sign at the
    numerator; None: it is none."""
    match = FRACTION.fullmatch(text)
    if match is None or int(match[5]) == 0:
        return None
    minus = (match[1] + match[2] + match[4]).count("-") % 2
    return (-int(match[3]) if minus else int(match[3])), int(match[5])


def elements(text: str) -> tuple[str, list[str]]:
    """The two outer brackets (empty if the first one does not close at the end) and the elements
    between the commas within them."""
    depth, ends = 0, -1
    commas: tuple[list[int], list[int]] = ([], [])
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c in ")]}" and depth == 0 and ends < 0:
            ends = i
        if c == "," and 0 <= depth <= 1:
            commas[depth].append(i)
    bracketed = text[:1] in ("(", "[") and ends == len(text) - 1
    cuts = [0, *commas[1], ends] if bracketed else [-1, *commas[0], len(text)]
    parts = [text[start + 1 : end] for start, end in pairwise(cuts)]
    return (text[0] + text[-1] if bracketed else ""), parts


def _compare(given: str, truth: str, depth: int) -> bool | list[AnswerPair]:
    given, truth = _bare(given), _bare(truth)
    if given == truth:
        return True
    settled = _by_value(given, truth)
    if settled is not None:
        return settled
    (brackets, ours), (wanted, theirs) = elements(given), elements(truth)
    if brackets != wanted or len(ours) != len(theirs) or depth == DEEPEST_TUPLE:
        return False
    if not brackets and len(ours) == 1:
        return False if exotic(given) or exotic(truth) else [(given, truth)]
    left: list[AnswerPair] = []
    for pair in zip(ours, theirs, strict=True):
        verdict = _compare(*pair, depth + 1)
        if not verdict:
            return False
        left += verdict if isinstance(verdict, list) else []
    return left or True


def _bare(text: str) -> str:
    """Without round brackets around a single element."""
    while True:
        brackets, parts = elements(text)
        if brackets != "()" or len(parts) != 1:
            return text
        text = parts[0]


def _by_value(given: str, truth: str) -> bool | None:
    """Whether integers, decimals and fractions of integers are equal; None if one is another kind.

    An integer equals nothing but an integer, a fraction no fraction that reduces to it.
    """
    ours, theirs = number(given), number(truth)
    if any(value is not None and value.denominator == 1 for value in (ours, theirs)):
        return ours == theirs
    mine, wanted = fraction(given), fraction(truth)
    if mine and wanted:
        return mine == wanted
    ours = Fraction(*mine) if mine else ours
    theirs = Fraction(*wanted) if wanted else theirs
    return None if ours is None or theirs is None else ours == theirs


def exotic(text: str) -> bool:
    """Whether the rule keeps a normalised expression from sympy."""
    rest = COMMAND.sub(" ", text)
    return (
        len(text) > SYMPY_CHARS
        or not set(COMMAND.findall(text)) <= SYMPY_COMMANDS
        or EXOTIC.search(rest) is not None
        or len(set(re.findall("[a-z]", rest))) > SYMPY_LETTERS
    )
