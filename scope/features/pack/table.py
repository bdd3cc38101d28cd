"""The table of all latents: what each column means, and the labels that token statistics give.

count            firings                           density      firings / tokens
mean, max        of the activation when it fires (exact)
p50 p90 p99      percentiles when it fires, from the histogram: within one bin, 9 %
cv               standard deviation / mean when it fires      skew, kurtosis   of the activation when it fires, excess
top_token        the token on which it fires most often       top_token_share   its share of the firings
n_tokens         different tokens on which it fired           n_tokens_half     how many make up half of the firings
promotes, suppresses   ten tokens each, by weights through the final norm's gain
logit_std, logit_skew  standard deviation and skewness of the direction's logits over the vocabulary
logit_kurtosis   their excess kurtosis: large means a few tokens stand out
out_score        rise of the summed probability of its ten promoted tokens when the direction is added, mean over prompts
out_kl           KL(steered || plain) of the next token there, in nats
nearest, nearest_cos   the latent whose decoder direction is closest, and the cosine
dec_norm, enc_dec_cos  norm of the decoder row; cosine between encoder column and decoder row, NaN of a transcoder
label            the rule that best predicts its firing (scope.features.labels.rules); where rules predict little (F1 below
                 0.2) and the output score beats random directions, what it promotes, and else its strongest contexts; of
                 pictures, the words beside them that go with it; label_source says which
label_source     "rule", "strongest contexts", "promoted tokens, weights and measured", "words beside pictures"; of packs that
                 were made before there were rules "token statistics", the tokens that best predict its firing
label_score      F1 of "fires exactly where the rule holds" on the half of the contexts that did not choose the rule; of token
                 statistics F1 of "fires exactly on the label's tokens"; of words beside pictures the
                 largest correlation, over pictures, with the strongest activation in each; for those that `scope label`
                 made, balanced accuracy of detection on windows that the labeller did not see (0.5 is guessing)
flags            dead, dense, rare, single-token, duplicate, output; comma separated
"""

from typing import Any

from scope.escape import visible_token

COLUMNS = tuple(
    "count density mean max p50 p90 p99 cv skew kurtosis top_token top_token_share n_tokens n_tokens_half promotes suppresses "
    "logit_std logit_skew logit_kurtosis out_score out_kl nearest nearest_cos dec_norm enc_dec_cos "
    "label label_source label_score flags".split()
)
TEXTS = ("top_token", "label", "label_source", "flags")
LISTS = ("promotes", "suppresses")
SURE = ("count", "density", "mean", "max")
"""Columns whose numbers are never absent, infinite or negative."""

BY_RULES, BY_CONTEXTS = "rule", "strongest contexts"
"""Labels of `scope.features.labels.rule_labels`: a rule, or the contexts of a latent that no rule predicts."""
BY_TOKENS, BY_OUTPUT = "token statistics", "promoted tokens, weights and measured"
BY_WORDS = "words beside pictures"
"""Labels whose score is a correlation over pictures: of the strongest activation in each with a word of the text beside it."""
UNCLEAR = 0.2
"""F1 below which a label from tokens says too little."""


def label(tokens: list[tuple[str, int, int]], count: int, covered: float = 0.05, most: int = 4) -> tuple[str, float]:
    """A label from token statistics and its F1, given (token, firings on it, times it stood) by falling firings.

    The tokens are those that raise the F1 of "fires exactly on these tokens", at most `most`, each with at least the
    share `covered` of the firings. A low score says that the tokens do not explain the latent; read the examples then.
    """
    if not count:
        return "never fired", 0.0
    chosen, best = label_tokens(tokens, count, covered, most)
    if not chosen:
        return among_others([token for token, _, _ in tokens]), 0.0
    words = ", ".join(dict.fromkeys(f"“{visible_token(t.strip(' ') or t)}”" for t in chosen))
    return (words if best >= 0.5 else f"often {words}"), best


NO_TOKEN = "no token stands out"
"""What earlier versions called a latent that no token predicts."""


def among_others(tokens: list[str]) -> str:
    """What a latent that no token predicts is called: by the tokens on which it fires most often; patches have none."""
    words = list(dict.fromkeys(f"“{visible_token(t.strip(' ') or t)}”" for t in tokens))[:3]
    return f"on {', '.join(words)} among others" if words else "see its pictures"


def label_tokens(tokens: list[tuple[Any, int, int]], count: int, covered: float = 0.05, most: int = 4) -> tuple[list, float]:
    """The tokens of a label from token statistics, by name or id, and their F1; arguments as for `label`."""
    chosen, hits, stood, best = [], 0, 0, 0.0
    ranked = sorted(tokens, key=lambda t: -(t[1] * t[1]) / max(t[2], 1))
    for token, fired, occurs in ranked:
        f1 = 2 * (hits + fired) / (count + stood + occurs)
        if fired >= covered * count and f1 > best and len(chosen) < most:
            chosen, hits, stood, best = [*chosen, token], hits + fired, stood + occurs, f1
    return chosen, best


def output_label(promoted: list[str], measured: list[str], most: int = 3) -> str | None:
    """A label from the output: tokens promoted by weights that measurably rose too; None where the two share none."""
    agreed = [t for t in promoted if t in measured][:most]
    words = ", ".join(dict.fromkeys(f"“{visible_token(t.strip(' ') or t)}”" for t in agreed))
    return f"promotes {words}" if agreed else None
