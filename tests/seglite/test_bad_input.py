"""Whatever a user's files and command lines hold: a right answer, or one sentence that names the culprit. Never a traceback."""
import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seglite import crf, evaluate, export, predict, train
from seglite.config import leaves
from seglite.data.voc import read_image, read_mask
from tests import strategies
from tests.seglite.tiny import METHODS

ROOT = Path(__file__).resolve().parents[2]
GREY = np.linspace(0, 255, 12 * 16).astype(np.uint8).reshape(12, 16)
PHOTO = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def save(path, array, mode=None, **options):
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def test_photographs_of_every_kind_become_rgb(tmp_path):
    wide = (GREY.astype(np.uint16) * 257)
    kinds = {
        "grey": save(tmp_path / "grey.png", GREY), "wide": save(tmp_path / "wide.png", wide), "cmyk": save(tmp_path / "cmyk.jpg", PHOTO, "CMYK", quality=95),
        "bilevel": save(tmp_path / "bilevel.png", GREY, "1"), "palette": save(tmp_path / "palette.gif", PHOTO, "P"),
        "alpha": save(tmp_path / "alpha.png", np.dstack([PHOTO, GREY])), "grey and alpha": save(tmp_path / "la.png", np.dstack([GREY, GREY]), "LA"),
    }
    for kind, path in kinds.items():
        image = read_image(path)
        assert image.dtype == np.uint8 and image.shape == (12, 16, 3), kind
    for kind in ("grey", "wide"):
        assert (read_image(kinds[kind]) == GREY[..., None]).all(), f"{kind}: the same picture, whatever the bits per pixel"
    assert (read_image(kinds["alpha"]) == PHOTO).all()
    assert np.abs(read_image(kinds["cmyk"]).astype(int) - PHOTO).mean() < 6


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert abs(int(read_image(tmp_path / "two.gif").mean()) - 10) <= 1


@pytest.mark.parametrize("turn, upright", [(3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, lambda a: np.rot90(a)), (2, np.fliplr)])
def test_photographs_are_turned_upright(turn, upright, tmp_path):
    note = Image.Exif()
    note[0x0112] = turn
    Image.fromarray(PHOTO).save(tmp_path / "turned.png", exif=note)
    assert (read_image(tmp_path / "turned.png") == upright(PHOTO)).all()


def test_a_picture_too_large_to_be_meant_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = save(tmp_path / "huge.png", PHOTO)
    with pytest.raises(ValueError, match=r"huge\.png cannot be read .*exceeds limit"):
        read_image(path)
    with pytest.raises(ValueError, match=r"huge\.png cannot be read .*exceeds limit"):
        read_mask(save(path, GREY), 21)


def black_png(path: Path, width: int, height: int) -> Path:
    """A grey picture of zeros: a thousandth of its size as a file."""
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                                                     for kind, body in chunks))
    return path


SMALL_MEMORY = """
import resource, sys
from pathlib import Path
from seglite.data.voc import read_image, read_mask
readers = {"image": read_image, "mask": lambda path: read_mask(path, 21)}
taken = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + (120 << 20),) * 2)  # 120 MB more than torch and this project take
for path in sys.argv[1:]:
    for kind, read in readers.items():
        try:
            print(read(Path(path)).shape)
        except ValueError as problem:
            print(problem)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited, and counted, as Linux does")
def test_small_files_of_very_many_pixels_where_memory_is_short(tmp_path):
    """150 megapixels in 146 kB are refused by their number, 81 megapixels by the memory there is, and the next picture is read as ever."""
    vast, large = black_png(tmp_path / "vast.png", 15_000, 10_000), black_png(tmp_path / "large.png", 9_000, 9_000)
    usual = save(tmp_path / "usual.png", GREY % 21)
    assert vast.stat().st_size < 200_000
    done = subprocess.run([sys.executable, "-W", "error", "-c", SMALL_MEMORY, vast, large, usual], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    said = done.stdout.splitlines()
    assert all(f"{kind} {vast} cannot be read" in line and "exceeds limit" in line for kind, line in zip(("image", "mask"), said[:2])), said
    assert f"image {large} cannot be read (not enough memory for its 9000 x 9000 pixels)" in said[2], said
    assert said[4:] == ["(12, 16, 3)", "(12, 16)"]


def test_a_problem_without_words_is_a_sentence(capsys):
    def body():
        raise MemoryError

    assert train.guarded(body) == 1 and capsys.readouterr().err.startswith("seglite: not enough memory; ")


@pytest.mark.parametrize("reader", [read_image, lambda path: read_mask(path, 21)], ids=["image", "mask"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"not a picture at all\n", b"\0" * 4096, b"\xff\xd8\xff\xe0"],
                         ids=["empty", "PNG's first bytes", "GIF's first bytes", "text", "zeros", "JPEG's first bytes"])
def test_files_that_are_no_picture(reader, content, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read \(.+\)"):
        reader(path)


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(GREY % 21 if kind == "mask" else PHOTO).save(out, "JPEG" if kind == "JPEG" else "PNG")
    return out.getvalue()


@settings(max_examples=150)
@given(st.sampled_from(["mask", "PNG", "JPEG"]), st.floats(0, 1), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4))
def test_damaged_pictures_are_an_array_or_a_sentence(tmp_path_factory, kind, keep, flips):
    content = bytearray(encoded(kind))
    for place, value in flips:
        content[int(place * len(content))] = value
    path = tmp_path_factory.mktemp("damaged") / "file.png"
    path.write_bytes(content[: round(keep * len(content))])
    try:
        array = read_mask(path, 21) if kind == "mask" else read_image(path)
    except ValueError as problem:
        assert "file.png" in str(problem) and "\n" not in str(problem)
    else:
        assert array.dtype == np.uint8 and array.ndim == (2 if kind == "mask" else 3)
        assert kind != "mask" or set(np.unique(array)) <= {*range(21), 255}


@given(strategies.label_maps(classes=40, ignore="some"))
def test_a_mask_is_accepted_exactly_when_its_values_are(tmp_path_factory, labels):
    path = save(tmp_path_factory.mktemp("mask") / "m.png", labels)
    foreign = sorted(set(np.unique(labels).tolist()) - {*range(21), 255})
    if foreign:
        with pytest.raises(ValueError, match=f"holds {foreign[0]}"):
            read_mask(path, 21)
    else:
        assert (read_mask(path, 21) == labels).all()


words = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=12)
KEYS = ["seed", "train.lr", "train.steps", "scenes.size", "data", "size", "method", "device", "threads", "augment.crop", "train.amp", "train", "out"]


@settings(max_examples=200)
@given(st.lists(st.one_of(words, st.builds("{}={}".format, words, words), st.builds("{}={}".format, st.sampled_from(KEYS), words)), min_size=1, max_size=3))
def test_any_command_line_is_a_setting_or_a_sentence(arguments):
    """What cannot be parsed is a UsageError with a one-line message, and nothing else."""
    try:
        train.settings.parse(["method=tiny", *arguments], METHODS)
    except train.settings.UsageError as problem:
        assert str(problem).strip() and len(str(problem)) < 600


@pytest.mark.parametrize("arguments", [["method=none"], ["train.lr=fast"], ["=3"], ["seed"], ["device=quantum"], ["data=voc"], ["data=voc", "root=/nowhere"],
                                       ["scenes.world=mars2"], ["train.steps=-1"], ["train.batch=0"], ["scenes.size=0"], ["weights=/nowhere.pth"]])
def test_the_command_ends_with_one_sentence(arguments, tmp_path, capsys):
    known = arguments if any(a.startswith("method=") for a in arguments) else ["method=marsstyle", *arguments]
    code = train.main([*known, f"out={tmp_path / 'run'}", "net=mobilenet_v2"] if "weights" in arguments[0] else [*known, f"out={tmp_path / 'run'}"])
    said = capsys.readouterr().err.strip()
    assert code in (1, 2) and said.startswith("seglite: ") and "Traceback" not in said and "unforeseen" not in said, said


REAL = sorted(set(leaves(train.METHODS["marsstyle"].Settings)) - {"debug"})  # debug=true asks for the traceback
values = st.one_of(words, st.sampled_from("0 1 -1 1e9 1e999 nan inf true none 1,2 scenes voc toy paper sgd bf16".split()), st.just(""))


def sentence(main, arguments: list[str]) -> tuple[int, str]:
    """(exit code, what it said on stderr): one sentence for a user, or nothing."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    text = said.getvalue()
    assert (code == 0) == (text == ""), f"{arguments} -> {code}: {text}"
    assert code == 0 or text.startswith("seglite: ") and "unforeseen" not in text and "Traceback" not in text and text.endswith("\n"), text
    return code, text


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(REAL), values, min_size=1, max_size=4), st.lists(words, max_size=1))
def test_training_takes_any_keys_and_values(tmp_path_factory, keys, rest):
    """Real keys with any values, and a word that is no key: the run, a stub, begins, or the command ends with 2 and a sentence."""
    begun = []

    class Stub:
        def __init__(self, config, command, supervision):
            begun.append(config)
            raise KeyboardInterrupt

    arguments = ["method=marsstyle", *(f"{key}={value}" for key, value in keys.items() if key != "method"), *rest]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(train, "Run", Stub)
        code = train.main(arguments)
    if any(a.lstrip("-") in ("help", "h") for a in arguments):
        assert code == 0 and not begun
    elif begun:
        assert code == 1 and said.getvalue().startswith("interrupted") and begun[0].method == "marsstyle"
    else:
        text = said.getvalue()
        assert code == 2 and text.startswith("seglite: ") and len(text.strip()) > 20 and "unforeseen" not in text and "Traceback" not in text, text


SERVED = {"evaluate": (evaluate, "score"), "predict": (predict, "predict_files"), "export": (export, "export"), "crf": (crf, "refine_files")}


@pytest.mark.parametrize("program", SERVED)
@settings(max_examples=40)
@given(data=st.data())
def test_the_other_commands_take_any_keys_and_values(program, data):
    """The body is a stub: what is parsed reaches it with exit code 0, everything else is a sentence and exit code 2."""
    module, body = SERVED[program]
    keys = data.draw(st.dictionaries(st.sampled_from(sorted({*leaves(module.Settings)} - {"debug"})), values, max_size=3))
    files = data.draw(st.lists(st.one_of(st.just("photo.jpg"), words), max_size=4))
    reached = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, body, lambda *arguments: reached.append(arguments))
        code, _ = sentence(module.main, [*(f"{key}={value}" for key, value in keys.items()), *files])
    asked_for_help = any(f.lstrip("-") in ("help", "h") for f in files)
    assert code == (0 if reached or asked_for_help else 2)
