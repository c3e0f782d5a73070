"""The zero-shot rule on numbers small enough to check by hand."""
import pytest
import torch
from torch.nn import functional as F

from seglite import openvocab as O
from seglite.tokenizer import Words


def by_hand(tokens, pooled, classes, scale, top):
    """The rule with loops."""
    B, S, K = len(tokens), tokens.shape[1], len(classes)
    out = torch.zeros(B, S, K)
    for b in range(B):
        kept = sorted(range(K), key=lambda k: -float(pooled[b] @ classes[k]))[:top]
        for s in range(S):
            e = [float(torch.exp(scale * tokens[b, s].double() @ classes[k].double())) for k in range(K)]
            for k in kept:
                out[b, s, k] = e[k] / sum(e) * e[k] / sum(e[j] for j in kept)
    return out


def test_segment_scores_are_the_product_of_two_softmaxes():
    torch.manual_seed(0)
    tokens, pooled, classes = (F.normalize(torch.randn(*s), dim=-1) for s in ((2, 3, 5), (2, 5), (7, 5)))
    found = O.segment_scores(tokens, pooled, classes, scale=10.0, top=3)
    torch.testing.assert_close(found, by_hand(tokens, pooled, classes, 10.0, 3), atol=1e-6, rtol=1e-4)
    assert ((found > 0).any(1).sum(1) == 3).all()  # the filter is the image's, not the segment's
    assert torch.equal(O.segment_scores(tokens, pooled, classes[:4], scale=1.0, top=5) > 0, torch.ones(2, 3, 4, dtype=torch.bool))


SCORES = torch.tensor([[[0.9, 0.0], [0.1, 0.3]]])  # two segments, two classes
LEFT_RIGHT = torch.tensor([[[[0.8, 0.3]], [[0.2, 0.7]]]])  # [1, 2, 1, 2]: left patch to segment 0


def test_pixels_take_the_scores_of_their_strongest_segment():
    found = O.pixel_scores(LEFT_RIGHT, SCORES, (2, 4), None)
    assert found.shape == (1, 3, 2, 4) and (found[:, 0] == -1).all()
    torch.testing.assert_close(found[0, 1:, 0, 0], SCORES[0, 0])
    torch.testing.assert_close(found[0, 1:, 1, 3], SCORES[0, 1])
    assert found.argmax(1)[0, 0].tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("threshold, labels", [(0.05, [1, 2]), (0.5, [1, 0]), (0.95, [1, 0])])
def test_background_takes_unsure_pixels_and_one_segment_survives(threshold, labels):
    """At 0.95 nothing is sure enough; min(threshold, best) keeps the best segment."""
    assert O.pixel_scores(LEFT_RIGHT, SCORES, (1, 2), threshold).argmax(1)[0, 0].tolist() == labels


def test_the_limit_is_each_images_own():
    scores = torch.cat([SCORES, SCORES / 3])
    found = O.pixel_scores(LEFT_RIGHT.expand(2, -1, -1, -1), scores, (1, 2), 0.5).argmax(1)[:, 0]
    assert found.tolist() == [[1, 0], [1, 0]]


TOKENIZER = Words(["a photo of a dog on grass ."], context=8)


def encode(tokens):
    table = torch.randn(TOKENIZER.size, 6, generator=torch.Generator().manual_seed(0))
    return table[tokens].sum(1)


def test_class_embeddings_average_before_they_normalise():
    prompts = ("a photo of a {}.", "a {}", "{}")
    found = O.class_embeddings(encode, TOKENIZER, ["dog", "grass"], prompts)
    texts = [encode(TOKENIZER([t.format(n) for t in prompts])) for n in ("dog", "grass")]
    torch.testing.assert_close(found, F.normalize(torch.stack([t.mean(0) for t in texts]), dim=1))
    each = O.class_embeddings(encode, TOKENIZER, ["dog", "grass"], prompts, each_unit=True)
    torch.testing.assert_close(each, F.normalize(torch.stack([F.normalize(t, dim=1).mean(0) for t in texts]), dim=1))
    assert not torch.allclose(found, each)
    with pytest.raises(ValueError, match="never saw the word 'zebra'; it knows 7 words"):
        O.class_embeddings(encode, TOKENIZER, ["dog", "zebra"], prompts)


def test_prompt_sets(tmp_path):
    assert O.templates("simple") == ("a photo of a {}.",) and len(O.templates("seven")) == 7
    (tmp_path / "own.txt").write_text("one {}\n\ntwo {}.\n")
    assert O.templates(str(tmp_path / "own.txt")) == ("one {}", "two {}.")
    (tmp_path / "bad.txt").write_text("no place\n")
    with pytest.raises(ValueError, match="'no place' must hold exactly one"):
        O.templates(str(tmp_path / "bad.txt"))
    with pytest.raises(ValueError, match="prompts=eighty is neither"):
        O.templates("eighty")


@pytest.mark.parametrize("size, options, expected", [
    ((300, 500), (448, 2048, 16), (448, 752)), ((100, 1000), (448, 2048, 16), (208, 2048)), ((64, 64), (0, 2048, 8), (64, 64)), ((60, 70), (0, 2048, 8), (64, 72))])
def test_the_size_at_which_an_image_is_seen(size, options, expected):
    assert O.resized(size, *options) == expected


def colour_model(image):
    """Segments: red, green. Each token is its class's unit vector."""
    share = image[:, :2].softmax(1)
    return O.Segmented(torch.eye(3)[:2].expand(len(image), 2, 3), F.normalize(torch.ones(len(image), 3), dim=1), share)


def embed(names):
    return torch.stack([torch.eye(3)[{"red": 0, "green": 1, "blue": 2}[n]] for n in names])


def test_predictor_words_can_change_after_training():
    image = torch.zeros(1, 3, 12, 20)
    image[:, 0, :, :10], image[:, 1, :, 10:] = 5.0, 5.0
    predict = O.WordPredictor(colour_model, embed, ("red", "green"))
    assert predict.classes == ("background", "red", "green")
    assert predict(image).argmax(1)[0, 0].tolist() == [1] * 10 + [2] * 10
    turned = predict.for_words(("blue", "green", "red"), threshold=0.5)
    assert turned(image).argmax(1)[0, 0].tolist() == [3] * 10 + [2] * 10
    only = predict.for_words(("red",))
    assert only(image).shape == (1, 2, 12, 20)


def test_windows_and_resizing_give_the_image_its_own_size_back():
    image = torch.zeros(1, 3, 12, 20)
    image[:, 0, :, :10], image[:, 1, :, 10:] = 5.0, 5.0
    whole = O.WordPredictor(colour_model, embed, ("red", "green"))
    windows = whole.for_words(whole.names, window=8, stride=4)
    torch.testing.assert_close(windows(image), whole(image))  # a model per pixel does not mind windows
    assert whole.for_words(whole.names, short_side=24, multiple=8)(image).shape == (1, 3, 12, 20)
    small = whole.for_words(whole.names, window=64, stride=32)
    torch.testing.assert_close(small(image), whole(image))


def test_retrieval_by_chance_is_the_mean_over_shuffled_vectors():
    owner = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    expected = O.retrieval_by_chance(owner, 4, ranks=(1, 3))
    assert expected["image to text R@1"] == pytest.approx((2 + 3 + 1 + 1) / 7 / 4) and expected["text to image R@3"] == 0.75
    random, found = torch.Generator().manual_seed(0), []
    for _ in range(400):
        image, text = (F.normalize(torch.randn(n, 16, generator=random), dim=1) for n in (4, 7))
        found.append(O.retrieval(image, text, owner, ranks=(1, 3)))
    for name, share in expected.items():
        assert sum(f[name] for f in found) / len(found) == pytest.approx(share, abs=0.05), name


def test_retrieval():
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0.1], [0, 0, 1]])
    found = O.retrieval(image, F.normalize(text, dim=1), torch.tensor([0, 1, 2, 2]), ranks=(1, 2))
    assert found["image to text R@1"] == 1.0 and found["text to image R@1"] == 0.75 and found["text to image R@2"] == 1.0
