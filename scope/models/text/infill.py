"""Filling in the middle: prompts of a CodeGemma, and the method that writes what stands between a prefix and a suffix."""

from collections.abc import Sequence

from scope.activations.corpus.infill import encoded, mark_ids, parts_of
from scope.activations.errors import CorpusError
from scope.errors import TokensError
from scope.models.face import LanguageModel, TextTokenizer
from scope.models.text.generate import generate
from scope.models.text.sampling_config import SamplingConfig


def infill_ids(tokenizer: TextTokenizer, prefix: str, suffix: str, form: str = "psm", files: Sequence[str] = ()) -> list[int]:
    """The ids of an infilling prompt, <bos> first; the model continues it with the middle.

    Raises:
        TokensError: an unknown form, marks in the texts, or a tokenizer whose four marks are not single tokens.
    """
    try:
        mark_ids(tokenizer)
        return [tokenizer.bos, *encoded(tokenizer, parts_of(prefix, suffix, form=form, files=files))[0]]
    except CorpusError as error:
        raise TokensError(str(error)) from None


def infill_text(tokenizer: TextTokenizer, prefix: str, suffix: str, form: str = "psm", files: Sequence[str] = ()) -> str:
    """The same prompt as text, for what takes a text and gives it to the tokenizer whole.

    Raises:
        TokensError: as `infill_ids`; also where the tokenizer would cut the whole otherwise than its parts.
    """
    ids = infill_ids(tokenizer, prefix, suffix, form, files)
    text = "".join(part for _, part in parts_of(prefix, suffix, form=form, files=files))
    if tokenizer.encode(text) != ids:
        raise TokensError(
            "This tokenizer reads the prompt as one text otherwise than part by part, as where a mark takes away the spaces "
            "beside it.\n  model.infill(prefix, suffix) reads it part by part and keeps every byte. For prompts in one text, "
            'as --infill gives to `scope steer`,\n  set "lstrip" and "rstrip" of the four marks to false in tokenizer.json.'
        )
    return text


class InfillMethods:
    """For a language model of ours whose vocabulary has the four marks."""

    def infill(
        self: LanguageModel,
        prefix: str,
        suffix: str,
        max_new_tokens: int = 64,
        *,
        form: str = "psm",
        files: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        fwd_hooks: Sequence = (),
    ) -> str:
        """The text between `prefix` and `suffix`: prefix + middle + suffix is the document, byte for byte, nothing added.

        It ends at an end token or at one of the marks. `files` are further files of the context, before this one.

        Raises:
            TokensError: the model was not made for infilling, or a text contains one of the marks.
        """
        ids = infill_ids(self.words, prefix, suffix, form, files)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop=stops)
        ends = {*self.cfg.eos, *mark_ids(self.words).values()}
        return generate(self, [ids], sampling, fwd_hooks=fwd_hooks, ends=sorted(ends))[0].text
