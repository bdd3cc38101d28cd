"""Pictures become the pixels that transformers' processors make of them; every odd kind has its rule or its refusal."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from scope.errors import CheckpointError, PictureError, TokensError
from scope.models.load import load_model
from scope.models.pictures.processor import PictureProcessor
from scope.models.pictures.read import LARGEST, read_picture
from tests.models.vision_twins import siglip

SIZE = 28


def noise(width: int = 37, height: int = 23, mode: str = "RGB") -> Image.Image:
    """Smooth colours with noise on them, and transparent where the mode can be."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    channels = [(x * 255 / width), (y * 255 / height), (x + y) * 4 % 256, (x * y) % 256]
    levels = np.clip(np.stack(channels, -1) + rng.normal(0, 25, (height, width, 4)), 0, 255).astype(np.uint8)
    image = Image.fromarray(levels, "RGBA") if mode in ("RGBA", "LA", "P") else Image.fromarray(levels[:, :, :3])
    return image.convert("PA").convert("P") if mode == "PA" else image.convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def theirs():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("size", [(37, 23), (200, 11), (28, 28), (5, 9)])
def test_pixels_are_those_of_transformers_within_a_grey_level(theirs, mode, size):
    image = noise(*size, mode)
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    ours = PictureProcessor(size=SIZE).to_pixels(image)
    assert ours.shape == (1, 3, SIZE, SIZE)
    assert (ours - expected).abs().max() <= 2 / 255 + 1e-6
    assert (ours - expected).abs().mean() < 1e-6


def test_files_bytes_arrays_and_tensors_of_one_picture_are_the_same_pixels(tmp_path):
    image, make = noise(), PictureProcessor(size=SIZE).to_pixels
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), file_of(image), array, torch.tensor(array), array.transpose(2, 0, 1)]
    for kind in kinds:
        assert torch.equal(make([kind])[0], make(image)[0])
    levels = PictureProcessor(size=23).to_grey_levels(PictureProcessor(size=23).to_pixels(noise(23, 23)))
    assert np.array_equal(levels[0], np.asarray(noise(23, 23)))


def test_a_photo_is_turned_upright_as_its_exif_says(theirs):
    image = noise()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    turned = read_picture(file_of(image, exif=exif))
    assert turned.size == (23, 37)
    assert np.array_equal(np.asarray(turned), np.asarray(image.rotate(-90, expand=True)))


def test_sixteen_bits_of_grey_are_scaled_to_eight():
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    read = np.asarray(read_picture(file_of(Image.fromarray(levels))))
    assert np.array_equal(read[:, :, 0], np.arange(256).reshape(16, 16))


def test_what_is_transparent_is_laid_on_white():
    clear = np.zeros((4, 4, 4), np.uint8)
    assert np.asarray(read_picture(file_of(Image.fromarray(clear)))).min() == 255


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


frames = [noise(), noise().rotate(180)]
REFUSED = {
    "several frames": (file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]), "2 frames"),
    "an animated PNG": (file_of(frames[0], "PNG", save_all=True, append_images=frames[1:]), "2 frames"),
    "several pages": (file_of(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "2 frames or pages"),
    "more pixels than are decoded": (bomb(30000, 3000), f"at most {LARGEST:,}"),
    "a decompression bomb": (bomb(60000, 60000), "more than|at most"),
    "a PNG that was cut short": (file_of(noise(300, 300))[:9000], "broken or was cut short"),
    "a JPEG that was cut short": (file_of(noise(300, 300), "JPEG")[:3000], "broken or was cut short"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "an SVG"),
    "a PDF": (b"%PDF-1.7 ...", "a PDF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "text in a file": (b"a cat sits on a mat", "cannot be read as a picture"),
    "nothing": (b"", "is empty"),
    "text where a picture belongs": ("a photo of a cat", "text that names no file"),
    "a number": (3.0, "this is a float"),
    "numbers that are no grey levels": (np.zeros((4, 4, 3)), "uint8"),
    "an array of another shape": (np.zeros((4, 4, 3, 2), np.uint8), r"\[4, 4, 3, 2\]"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_refused_by_name(kind):
    source, message = REFUSED[kind]
    with pytest.raises(PictureError, match=message):
        read_picture(source)


def test_a_broken_picture_among_many_is_named_by_its_place(tmp_path):
    (tmp_path / "b.png").write_bytes(file_of(noise())[:100])
    with pytest.raises(PictureError, match=r"Picture 2 \(.*b\.png\)"):
        PictureProcessor(size=SIZE).to_pixels([noise(), noise(), tmp_path / "b.png"])


def test_boxes_of_patches_are_where_they_lie_in_the_picture():
    """A picture of 58 x 29 squeezed to 29 x 29: patches of 7 pixels are 14 wide and 7 high, and a pixel is left over."""
    boxes = PictureProcessor(size=29).patch_boxes(7, (58, 29))
    assert len(boxes) == 16
    assert boxes[0] == (0, 0, 14, 7)
    assert boxes[5] == (14, 7, 28, 14)
    assert boxes[-1] == (42, 21, 56, 28)


RELEASED = {
    "SigLIP's": {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                 "image_processor_type": "SiglipImageProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
                 "processor_class": "SiglipProcessor", "size": {"height": 29, "width": 29}},
    "PaliGemma's": {"do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_seq_length": 16,
                    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_processor_type": "SiglipImageProcessorFast",
                    "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 29, "width": 29}, "crop_size": None},
    "another mean and filter": {"image_mean": [0.1, 0.2, 0.3], "image_std": 0.25, "resample": "bilinear",
                                "size": {"height": 29, "width": 29}},
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_prepares_pictures_as_its_own_config_says(tmp_path, name, nested):
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    raw = RELEASED[name]
    file = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / file).write_text(json.dumps({"processor_class": "X", "image_processor": raw} if nested else raw))
    ours = PictureProcessor.from_folder(tmp_path, 29)
    known = {k: v for k, v in raw.items() if k.startswith(("do_n", "do_r", "image_m", "image_std", "rescale", "size"))}
    theirs = SiglipImageProcessorPil(**known, resample=2 if raw.get("resample") == "bilinear" else 3)
    expected = theirs(noise(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.to_pixels(noise()), expected, rtol=0, atol=2e-6)


WRONG = {
    "another size": ({"size": {"height": 224, "width": 224}}, "224 x 224, and this model takes 29 x 29"),
    "the shortest edge": ({"size": {"shortest_edge": 29}}, "None x None"),
    "a crop": ({"do_center_crop": True}, "do_center_crop"),
    "no resizing": ({"do_resize": False}, "do_resize"),
    "another model's": ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
    "two channels": ({"image_mean": [0.5, 0.5]}, "2 numbers"),
    "a filter that is none": ({"resample": 17}, "17"),
    "a deviation of zero": ({"image_std": [0.5, 0, 0.5]}, "not above 0"),
    "text for a number": ({"rescale_factor": "small"}, "rescale_factor"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_processor_that_does_not_belong_to_the_model_is_refused(tmp_path, kind):
    raw, message = WRONG[kind]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=message):
        PictureProcessor.from_folder(tmp_path, 29)


@pytest.mark.filterwarnings("ignore")
def test_a_loaded_model_prepares_pictures_itself_and_refuses_a_foreign_processor(tmp_path):
    folder = siglip(tmp_path)
    model = load_model(str(folder))
    assert model.to_pixels([noise(), noise()]).shape == (2, 3, 29, 29)
    assert model.patch_grid() == (4, 4)
    assert len(model.patch_boxes((37, 23))) == model.cfg.vision.n_patches
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3}))
    assert load_model(str(folder)).provenance["config_sha256"] != model.provenance["config_sha256"]
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    with pytest.raises(CheckpointError, match="384 x 384"):
        load_model(str(folder))


@pytest.mark.filterwarnings("ignore")
def test_texts_are_the_tokens_that_transformers_makes_of_them(tmp_path):
    """SigLIP's text loses case and punctuation, ends with </s> and is padded with it to the tower's length."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "▁ ▁a ▁photo ▁of ▁cat ▁dog s ▁the c a t ▁on ▁mat".split()
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((w, -1.0 - i / 9) for i, w in enumerate(words))]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0))
    backend.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Lowercase(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"[!-/:-@\[-`{-~]"), ""),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.add_special_tokens(["</s>", "<unk>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    folder = siglip(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    theirs.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    model, texts = load_model(str(folder)), ["A photo of a CAT.", "the   dogs!", "", "cats, on the mat"]
    expected = theirs(texts, padding="max_length", max_length=9, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(model.to_tokens(texts), expected)
    long = "a photo of a cat on the mat on the mat"
    cut = theirs([long], padding="max_length", max_length=9, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(model.to_tokens(long, truncate=True), cut)
    with pytest.raises(TokensError, match="has 12 tokens, and this tower takes 9"):
        model.to_tokens(long)
    assert model(texts).shape == (4, 24)
