"""MARS: every equation against its plain form, the boundary cases its paper leaves open, and a miniature that fails when the mechanism breaks."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from seglite import cam, config, pseudo, stego
from seglite.data import DELETED, IGNORE
from seglite.kmeans import cosine_kmeans
from seglite.papers import marsstyle as mars
from seglite.run import Run
from seglite.teacher import Teacher
from tests.tolerances import assert_close


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DATA = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


# ---- activation maps -------------------------------------------------------------------------------------------------------------------


def test_activation_maps_follow_the_object_when_the_image_is_mirrored():
    """A "network" that answers at its input: with flip the maps stay where the evidence is, and average to it."""
    image = rand(2, 3, 8, 12)
    scores = lambda x: F.avg_pool2d(x, 2)
    plain, flipped = cam.activation_maps(scores, image), cam.activation_maps(scores, image, flip=True)
    assert_close(flipped, plain)
    assert plain.min() >= 0 and plain.shape == (2, 3, 4, 6)
    assert cam.activation_maps(scores, image, (1.0, 0.5, 2.0)).shape == (2, 3, 4, 6)


def test_seeds_need_evidence_and_a_tag():
    maps = torch.zeros(1, 2, 2, 2)
    maps[0, 0, 0, 0], maps[0, 1, 1, 1] = 5.0, 7.0
    labels = cam.seeds(cam.normalise(maps, torch.tensor([[1.0, 0.0]])), 0.2, (2, 2))
    assert labels.tolist() == [[[1, 0], [0, 0]]]  # class 2 is stronger but has no tag
    empty = cam.normalise(torch.zeros(1, 2, 2, 2), torch.ones(1, 2))
    assert cam.seeds(empty, 0.2, (2, 2)).sum() == 0 and torch.isfinite(empty).all()
    with pytest.raises(ValueError, match="0..1"):
        cam.seeds(maps, 1.5, (2, 2))


def test_in_order_gives_every_image_once_and_never_mixes_sizes():
    sizes = [(8, 8), (8, 8), (6, 9), (8, 8), (8, 8), (8, 8)]
    class Data:
        mean, std = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
        def __len__(self): return len(sizes)
        def read(self, i, wants): return {"image": np.full((*sizes[i], 3), i, np.uint8), "tags": np.array([i], np.float32)}
    groups = list(cam.in_order(Data()))
    assert [g[0] for g in groups] == [[0, 1], [2], [3, 4, 5]]
    assert [tuple(g[1].shape) for g in groups] == [(2, 3, 8, 8), (1, 3, 6, 9), (3, 3, 8, 8)]
    assert groups[2][2].tolist() == [[3], [4], [5]]


# ---- STEGO and the small backbone ------------------------------------------------------------------------------------------------------


def test_correspondence_loss_is_the_plain_loop():
    f, g, s, t = (rand(2, c, 5, seed=i).double() for i, c in enumerate((7, 7, 4, 4)))
    cosine = lambda a, b: float(a @ b / (a.norm() * b.norm()))
    total = 0.0
    for b in range(2):
        table = [[cosine(f[b, :, p], g[b, :, q]) for q in range(5)] for p in range(5)]
        rows = [[v - sum(row) / 5 for v in row] for row in table]
        other = [[[cosine(f[i, :, p], g[i, :, q]) for q in range(5)] for p in range(5)] for i in range(2)]
        mean = sum(v for image in other for row in image for v in row) / 50
        for p in range(5):
            for q in range(5):
                total += max(cosine(s[b, :, p], t[b, :, q]), 0) * (rows[p][q] + mean - 0.3)
    assert_close(stego.correspondence_loss(f, g, s, t, 0.3), torch.tensor(-total / 50, dtype=torch.float64))


def test_correspondence_loss_pulls_equal_kinds_together_and_never_touches_the_features():
    kinds = torch.tensor([0, 0, 0, 1, 1, 1])
    f = torch.eye(2)[kinds].T[None].requires_grad_()  # [1, 2, 6]
    s = (rand(1, 3, 6) + 1.5).requires_grad_()  # all alike at first: the clamp gives no gradient to pairs that are already opposite
    optimizer = torch.optim.Adam([s], 0.05)
    for _ in range(300):
        loss = stego.correspondence_loss(f, f, s, s, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cosine = stego.correspondence(s, s)[0]
    equal = kinds[:, None] == kinds[None]
    assert cosine[equal].min() > 0.9 and cosine[~equal].max() < 0.1
    assert f.grad is None


def test_neighbours_are_the_most_similar_others():
    pooled = rand(9, 4)
    unit = F.normalize(pooled, dim=1)
    table = stego.nearest_neighbours(pooled, 3, chunk=4)
    for i in range(9):
        order = sorted((j for j in range(9) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        assert table[i].tolist() == order[:3]


def test_redundancy_loss_wants_equal_and_unrelated_channels():
    a = torch.linalg.qr(rand(64, 4) - rand(64, 4).mean(0))[0]
    a = torch.linalg.qr(a - a.mean(0))[0]  # uncorrelated channels of mean zero
    assert stego.redundancy_loss(a, a) < 1e-2
    assert stego.redundancy_loss(a, rand(64, 4, seed=5)) > 2
    twin = torch.stack([a[:, 0]] * 4, 1)
    assert 0.1 < float(stego.redundancy_loss(twin, twin)) < 0.14  # 12 off-diagonal ones, weight 0.01


def test_displaced_pairs_are_neighbours():
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij"))[None]
    for _ in range(20):
        a, b = stego.displaced(grid, grid, 2)
        shift = (a - b).unique(dim=0)
        assert len(a) >= 4 * 5 and len(shift) == 1 and shift.abs().max() <= 2


# ---- K-means ---------------------------------------------------------------------------------------------------------------------------


def test_kmeans_splits_every_region_by_itself_and_ignores_masked_cells():
    north, east = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    vectors = torch.stack([torch.stack([north, north * 3, north, east, -east, -east]), torch.stack([east, east, -north, -north, north, north])])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    centres, cluster = cosine_kmeans(vectors, mask, 2)
    found = [sorted(tuple(round(v, 5) for v in c) for c in region.tolist()) for region in centres]
    assert found == [[(0.0, 1.0), (1.0, 0.0)], [(-0.0, -1.0), (1.0, 0.0)]]
    assert cluster[0, 0] == cluster[0, 1] != cluster[0, 3]


def test_kmeans_is_the_plain_algorithm_region_by_region():
    vectors, mask = rand(5, 12, 3), rand(5, 12, seed=1) > -0.7
    centres, _ = cosine_kmeans(vectors, mask, 3, 8)
    for g in range(5):
        unit = F.normalize(vectors[g][mask[g]], dim=1)
        chosen = [unit[(unit @ unit.sum(0)).argmin()]]
        while len(chosen) < 3:
            chosen.append(unit[torch.stack([unit @ c for c in chosen]).amax(0).argmin()])
        for _ in range(8):
            member = torch.stack([unit @ c for c in chosen]).argmax(0)
            chosen = [F.normalize(unit[member == j].sum(0), dim=0) if (member == j).any() else chosen[j] for j in range(3)]
        assert_close(centres[g], torch.stack(chosen))


def test_one_cluster_is_the_mean_direction():
    vectors = rand(1, 9, 4)
    centres, _ = cosine_kmeans(vectors, torch.ones(1, 9).bool(), 1)
    assert_close(centres[0, 0], F.normalize(F.normalize(vectors[0], dim=1).sum(0), dim=0))


# ---- (b) ---------------------------------------------------------------------------------------------------------------------------------


def test_equation_1_linear_shortcut_is_the_double_loop():
    front, back = rand(6, 5).double(), rand(11, 5, seed=1).double()
    mean, least, clamped = [], [], []
    for v in front:
        each = [(1 - float(v @ b / (v.norm() * b.norm()))) / 2 for b in back]
        mean.append(sum(each) / len(each))
        least.append(min(each))
        clamped.append(sum(min(d, 0.5) for d in each) / len(each))  # a distance above 1/2 is a negative cosine
    assert_close(mars.background_distance(front, back), torch.tensor(mean, dtype=torch.float64))
    assert_close(mars.background_distance(front, back, "clamped"), torch.tensor(clamped, dtype=torch.float64))
    assert_close(mars.background_distance(front, back, "minimum"), torch.tensor(least, dtype=torch.float64))


@pytest.mark.parametrize("count, alpha, chosen", [(1, 0.4, 1), (2, 0.4, 1), (3, 0.4, 2), (5, 0.4, 2), (6, 0.4, 3), (10, 0.7, 7), (7, 1.0, 7), (3, 0.01, 1)])
def test_the_ceil_rule(count, alpha, chosen):
    distance = torch.arange(count).float().flip(0)
    assert mars.farthest(distance, alpha).tolist() == list(range(chosen))  # farthest first


def test_centroids_take_the_far_centres_and_leave_out_classes_without_any():
    background = torch.tensor([[1.0, 0.0, 0.0]])
    centres = {"foreground": torch.tensor([[0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), "label": torch.tensor([1, 1, 3, 1]), "background": background}
    V, known = mars.debiased_centroids(centres, 5, 0.3, "mean")
    assert known.tolist() == [False, True, False, True, False]
    assert V[1].tolist() == [0, 1, 0] and V[3].tolist() == [0, 0, 1] and V[[0, 2, 4]].abs().sum() == 0
    none = {**centres, "background": background[:0]}
    assert not mars.debiased_centroids(none, 5, 0.3, "mean")[1].any()  # nothing to compare with: nothing is known


def test_regions_are_per_image_and_class_and_skip_small_ones():
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, :4], labels[1, :2, :2], labels[1, 6:] = 2, 1, IGNORE
    found = mars.cluster_regions(rand(2, 3, 4, 4), labels, range(1, 3), 2, smallest=3)
    assert found.image.tolist() == [0] and found.label.tolist() == [2]  # class 1 covers a single cell
    assert found.inside.sum() == 8 and found.centres.shape == (1, 2, 3)
    back = mars.cluster_regions(rand(2, 3, 4, 4), labels, range(0, 1), 2, smallest=3)
    assert back.inside.sum(1).tolist() == [8, 11]  # ignored cells belong to nobody


# ---- (c) ---------------------------------------------------------------------------------------------------------------------------------


def test_similarity_is_the_maximum_over_the_image_s_classes_only():
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 2)
    V = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    allowed = torch.tensor([[False, True, False, False]])
    assert mars.similarity_map(codes, V, allowed).flatten().tolist() == [1, 0]
    allowed[0, 2] = True
    assert mars.similarity_map(codes, V, allowed).flatten().tolist() == [1, 1]
    assert mars.similarity_map(codes, V, torch.tensor([[False, False, False, True]])).flatten().tolist() == [0, 0]  # ReLU
    assert mars.similarity_map(codes, V, torch.zeros(1, 4).bool()).flatten().tolist() == [0, 0]


def test_nothing_is_deleted_when_m_is_one_everywhere():
    labels = torch.randint(0, 4, (2, 5, 6), generator=torch.Generator().manual_seed(0))
    labels[0, 0] = IGNORE
    known = torch.ones(4).bool()
    assert torch.equal(mars.delete(labels, torch.ones(2, 5, 6).bool(), known), labels)
    gone = mars.delete(labels, torch.zeros(2, 5, 6).bool(), known)
    assert torch.equal(gone == DELETED, (labels > 0) & (labels != IGNORE))  # background and ignored pixels never change
    known[2] = False
    assert torch.equal(mars.delete(labels, torch.zeros(2, 5, 6).bool(), known) == DELETED, (labels > 0) & (labels != 2) & (labels != IGNORE))


def test_threshold_and_its_crf_reading_agree_on_a_flat_map(monkeypatch):
    """Without neighbours to listen to, the CRF's two channels must cross exactly at the threshold."""
    monkeypatch.setattr(mars, "refine", lambda probability, image: probability)
    values = torch.linspace(0.015, 0.985, 50)[None, None].expand(1, 3, 50)
    for threshold in (0.3, 0.382, 0.5):
        plain = mars.binarise(values, (3, 50), threshold)
        assert torch.equal(plain, values > threshold)
        assert torch.equal(mars.binarise(values, (3, 50), threshold, torch.zeros(1, 3, 3, 50)), plain)


def test_refinement_removes_a_lone_pixel():
    probability = torch.full((1, 2, 12, 12), 0.2)
    probability[:, 1] = 0.8
    probability[0, :, 6, 6] = torch.tensor([0.6, 0.4])
    assert probability.argmax(1).sum() == 143
    assert mars.refine(probability, torch.full((1, 3, 12, 12), 90.0)).argmax(1).sum() == 144


# ---- (d) ---------------------------------------------------------------------------------------------------------------------------------


def batch_of(labels, tags, image=None):
    return {"image": image if image is not None else rand(len(labels), 3, *labels.shape[-2:]), "label": labels, "tags": tags, "index": torch.arange(len(labels))}


def test_weights_are_one_outside_deleted_pixels_and_the_confidence_inside():
    labels = torch.tensor([[[0, 1, DELETED, DELETED, IGNORE]]])
    probability = torch.tensor([[0.6, 0.2, 0.15, 0.05], [0.1, 0.2, 0.6, 0.1]])[[0, 0, 0, 1, 0]].T.reshape(1, 4, 1, 5)
    tags = torch.tensor([[1.0, 0.0, 1.0]])  # class 2 is not in the image
    assert_close(mars.certainty(labels, probability, tags, False), torch.tensor([[[1, 1, 0.2, 0.2, 1]]]))
    assert_close(mars.certainty(labels, probability, tags, True), torch.tensor([[[1, 1, 0.6, 0.2, 1]]]))


def test_loss_is_the_printed_sum_over_the_number_of_valid_pixels():
    logits, target, W = rand(2, 3, 4, 5).double(), torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5).double()
    target[0, 0] = IGNORE
    log_p, total, valid = logits.log_softmax(1), 0.0, 0
    for b in range(2):
        for y in range(4):
            for x in range(5):
                if target[b, y, x] != IGNORE:
                    total -= float(W[b, y, x] * log_p[b, target[b, y, x], y, x])
                    valid += 1
    assert_close(mars.weighted_cross_entropy(logits, target, W), torch.tensor(total / valid), torch.float32)


@pytest.mark.parametrize("deleted, expected", [("background", [0, 2, 0]), ("ignore", [0, 2, IGNORE]), ("complement", [0, 2, 1]), ("weighted", [0, 2, 1])])
def test_what_becomes_of_deleted_pixels(deleted, expected):
    model = torch.nn.Conv2d(3, 3, 1)
    torch.nn.init.zeros_(model.weight)
    model.bias.data = torch.tensor([0.0, 1.0, 2.0])
    batch = batch_of(torch.tensor([[[0, 2, DELETED]]]), torch.tensor([[1.0, 0.0]]))
    settings = mars.Settings(deleted=deleted, restrict_teacher=True)  # class 2 is likelier but not among the tags
    target, W = mars.targets(batch, Teacher(model), settings, DATA)
    assert target.flatten().tolist() == expected
    assert (W is not None) == (deleted == "weighted")
    if deleted == "weighted":
        assert_close(W.flatten(), torch.tensor([1, 1, math.exp(1) / (1 + math.exp(1) + math.exp(2))]))
    settings.restrict_teacher = False
    assert mars.targets(batch, Teacher(model), settings, DATA)[0].flatten().tolist()[2] == {"background": 0, "ignore": IGNORE}.get(deleted, 2)


@pytest.mark.parametrize("weight", ["literal", "with_background"])
def test_no_gradient_reaches_the_teacher(weight):
    model = torch.nn.Conv2d(3, 3, 1)
    teacher = Teacher(model)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[:, :2] = DELETED
    settings = mars.Settings(deleted="weighted", weight=weight)
    loss = mars.segment_step(model, batch_of(labels, torch.ones(2, 2)), teacher, settings, DATA)["loss"]
    loss.backward()
    assert model.weight.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    target, W = mars.targets(batch_of(labels, torch.ones(2, 2)), teacher, settings, DATA)
    assert not W.requires_grad


def test_a_segmenter_overfits_four_images_with_deleted_pixels():
    """A quarter of every object is deleted; the teacher must fill it in from the rest."""
    torch.manual_seed(0)
    truth = torch.zeros(4, 32, 32, dtype=torch.long)
    for i in range(4):
        truth[i, 8:24, 4 + 3 * i : 20 + 3 * i] = 1 + i % 2
    image = rand(4, 3, 32, 32) * 0.1 + F.one_hot(truth, 3).permute(0, 3, 1, 2)
    labels = truth.clone()
    labels[:, 10:22:4][truth[:, 10:22:4] > 0] = DELETED  # rows inside the object
    tags = F.one_hot(torch.arange(4) % 2, 2).float()
    model = mars.build_segmenter(mars.Settings(), 3)
    teacher, optimizer = Teacher(model, 0.9), torch.optim.Adam(model.parameters(), 5e-3)
    model.train()
    for _ in range(60):
        loss = mars.segment_step(model, batch_of(labels, tags, image), teacher, mars.Settings(deleted="complement"), DATA)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(model)
    filled = teacher(image).argmax(1)
    assert (filled == truth).float().mean() > 0.97
    assert (filled == truth)[labels == DELETED].float().mean() > 0.9


# ---- judging pseudo labels -----------------------------------------------------------------------------------------------------------------


def test_targets_and_biased_centres_are_told_by_overlap():
    part = mars.Part([0], rand(1, 3, 4, 4), torch.ones(1, 1), torch.ones(1, 4, 4).long(), torch.zeros(1, 2, 4, 4))
    part.codes[0, 0, :2], part.codes[0, 1, 2:] = 1, 1
    regions = mars.cluster_regions(part.codes, part.labels, range(1, 2), 2)
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1
    target, biased = pseudo.target_flags((4, 4), regions, mask)
    top = int(regions.cluster[0, 0])
    assert target[0, top] and not target[0, 1 - top] and biased[0, 1 - top] and not biased[0, top]


def test_deleted_shares_count_right_and_wrong_pixels_apart():
    masks = [np.array([[1, 1, 0, 0, 255]], np.uint8)]
    class Truth:
        classes = ("background", "a")
        def __len__(self): return 1
        def read(self, i, wants): return {"mask": masks[i]}
    before, after = [np.array([[1, 1, 1, 1, 1]], np.uint8)], [np.array([[1, DELETED, DELETED, DELETED, DELETED]], np.uint8)]
    assert pseudo.deleted_shares(Truth(), before, after)[1].tolist() == [1.0, 0.5]
    assert pseudo.compare(Truth(), after).iou().tolist() == [2 / 3, 0.5]


# ---- recipes of other sizes ----------------------------------------------------------------------------------------------------------------


def test_the_paper_s_networks_have_the_published_names_and_shapes(tmp_path):
    """size=paper on tiny inputs: ResNet-50 classifier, DeepLabv3+ on ResNet-101 whose file would load, DINO ViT-B/8 from a file, a 70-d head."""
    settings, _ = config.parse(["size=paper", "data=voc", "root=somewhere"], {"marsstyle": mars})
    assert (settings.k_fg, settings.k_bg, settings.alpha, settings.ema, settings.distance, settings.stego.dim) == (2, 2, 0.4, 0.999, "mean", 70)
    assert settings.head.steps == 5000 and settings.head.lr == 5e-4 and settings.stego_crop == 224 and settings.crf and settings.test_crf
    from seglite.nets.resnet import resnet101
    from seglite.nets.vit import vit_small

    published = {k: v for k, v in resnet101().state_dict().items()}
    torch.save(published, tmp_path / "resnet101.pth")
    settings.weights = str(tmp_path / "resnet101.pth")
    segmenter = mars.build_segmenter(settings, 21, say=lambda s: None).eval()
    assert torch.equal(segmenter.backbone.layer4[2].conv3.weight, published["layer4.2.conv3.weight"])
    with torch.no_grad():
        assert segmenter(rand(1, 3, 65, 49)).shape == (1, 21, 65, 49)
    settings.weights = ""
    classifier = mars.build_classifier(settings, 20).eval()
    with torch.no_grad():
        assert classifier.class_maps(rand(1, 3, 64, 96)).shape == (1, 20, 4, 6) and classifier(rand(1, 3, 64, 96)).shape == (1, 20)

    torch.save(vit_small(patch=8).state_dict(), tmp_path / "dino.pth")
    features = stego.dino(str(tmp_path / "dino.pth"), say=lambda s: None).eval()
    head = stego.SegmentationHead(features.dim, settings.stego.dim, settings.stego.dropout).eval()
    codes = stego.encode(lambda x: head(features(x)), rand(1, 3, 50, 37), (1.0, 0.5), flip=True)
    assert codes.shape == (1, 70, 6, 5)  # 50 x 37 is stretched to 48 x 40
    with pytest.raises(ValueError, match="dino_weights"):
        stego.dino("")


def test_backbone_and_new_layers_learn_at_their_own_rates():
    settings = mars.Settings(net="mobilenet_v2")
    groups = cam.new_layers_first(mars.build_segmenter(settings, 21), 0.1)
    assert [g["lr_scale"] for g in groups] == [1.0, 0.1]
    model = mars.build_segmenter(settings, 21)
    assert sum(len(g["params"]) for g in cam.new_layers_first(model, 0.1)) == len(list(model.parameters()))


def test_the_mobile_classifier_keeps_the_last_convolution_and_the_segmenter_does_not():
    """With it 2.2 million parameters before the new layer (torchvision's features), maps at the same stride, all new weights in one layer."""
    settings = mars.Settings(net="mobilenet_v2")
    classifier = mars.build_classifier(settings, 20)
    assert sum(p.numel() for p in classifier.backbone.parameters()) == 2_223_872 and classifier.classifier.weight.shape == (20, 1280, 1, 1)
    image = rand(2, 3, 64, 48)
    assert classifier.features(image).shape == (2, 1280, 4, 3) and classifier(image).shape == (2, 20)
    assert not any("features.18" in name for name in mars.build_segmenter(settings, 21).state_dict())


# ---- the miniature -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_world(tmp_path_factory):
    """Stage (a) on 300 small images: a biased classifier and label-free features, in about half a minute."""
    keys = {"scenes.train_images": 300, "scenes.val_images": 4, "classifier.steps": 160, "backbone.steps": 150, "head.steps": 40, "threads": 1}
    out = tmp_path_factory.mktemp("mars") / "run"
    settings, _ = config.parse([f"{k}={v}" for k, v in keys.items()] + [f"out={out}"], {"marsstyle": mars})
    run = Run(settings, supervision=mars.supervision(settings), quiet=True)
    _, biased, relabel = mars.label_stages(run)
    yield run, biased, relabel
    run.close()


def judge(run, labels):
    return pseudo.score(pseudo.compare(run.truth("train"), labels), mars.PROBLEM)


def test_miniature_debiasing_removes_context_and_keeps_objects(tiny_world):
    run, biased, relabel = tiny_world
    labels = list(relabel(run.config))
    before, after = judge(run, biased), judge(run, labels)
    wrong, right = np.nanmean(pseudo.deleted_shares(run.truth("train"), biased, labels)[1:3], 0)
    assert before["problem FP"] > 0.25, "the classifier must be biased for this test to mean anything"
    assert after["mIoU"] > before["mIoU"] + 0.05 and after["problem"] > before["problem"] + 0.1 and after["problem FP"] < 0.7 * before["problem FP"]
    assert wrong > 0.5 and right < 0.15


def test_miniature_fails_when_the_mechanism_is_broken(tiny_world, monkeypatch):
    """The nearest centres instead of the farthest, or the classifier's own features, must not pass the test above."""
    run, biased, relabel = tiny_world
    before = judge(run, biased)
    own = judge(run, relabel(config.override(run.config, cluster_on="wsss")))
    assert own["problem"] < before["problem"] + 0.05
    monkeypatch.setattr(mars, "farthest", lambda distance, alpha: distance.argsort()[: math.ceil(alpha * len(distance))])
    assert judge(run, relabel(run.config))["problem"] < before["problem"]
