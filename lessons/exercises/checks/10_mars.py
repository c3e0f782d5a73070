"""What can go wrong in the exercises of lesson 10, by name. Expected values are worked out here with plain loops."""
import torch

from lessons.check import attempt


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _cosine(a, b) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def _try(function, *arguments):
    return attempt(function, *arguments, kind=torch.Tensor, called="a tensor")


def _same(a, b) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), atol=1e-5))


def check_distance(function) -> list[str]:
    centres, background = _random(5, 3) * torch.tensor([[1.0], [4.0], [0.3], [1.0], [2.0]]), _random(7, 3, seed=1) * _random(7, 1, seed=2).abs()
    answer, problem = _try(function, centres, background)
    if problem:
        return [problem]
    table = torch.tensor([[_cosine(c, b) for b in background] for c in centres])
    if _same(answer, (1 - table.mean(1)) / 2):
        big = torch.ones(1, 2).expand(200_000, 2)  # a table of these would be 160 GB
        _, problem = _try(function, big, big)
        return ["background_distance needs the whole table [M, J]: the mean over j can move inside the dot product" + f" ({problem})"] if problem else []
    if _same(answer, (1 - table.amax(1)) / 2):
        return ["background_distance takes the nearest background centre; Eq. (1) is the mean over all"]
    if _same(answer, 1 - table.mean(1)):
        return ["background_distance is twice too large: D = (1 - S) / 2"]
    if _same(answer, (1 + table.mean(1)) / 2):
        return ["background_distance grows with similarity: it must be a distance"]
    unit = torch.nn.functional.normalize(centres, dim=1)
    if _same(answer, (1 - unit @ torch.nn.functional.normalize(background.mean(0), dim=0)) / 2):
        return ["background_distance compares with the direction of the mean: normalise each background centre, then average, and leave the mean as long as it is"]
    if _same(answer, (1 - centres @ background.mean(0)) / 2):
        return ["background_distance uses dot products of raw centres: S is the cosine, so both sides must be of unit length"]
    return [f"background_distance gave {[round(float(v), 3) for v in answer.flatten()[:5]]}, expected {[round(float(v), 3) for v in (1 - table.mean(1)) / 2]}"]


def check_centroid(function) -> list[str]:
    centres, distance = _random(6, 3), torch.tensor([0.2, 0.9, 0.5, 0.7, 0.1, 0.3])
    answer, problem = _try(function, centres, distance, 0.4)
    if problem:
        return [problem]
    if _same(answer, centres[[4, 0, 5]].mean(0)):
        return ["debiased_centroid averages the nearest centres: those are the context; the far ones are the class"]
    if _same(answer, centres[[1, 3]].mean(0)):
        return ["debiased_centroid rounds down: of 6 centres ceil(0.4 * 6) = 3 are taken, and a class with one centre must keep it"]
    if _same(answer, centres[[1, 3, 2]].sum(0)):
        return ["debiased_centroid sums where Eq. (2) averages"]
    if not _same(answer, centres[[1, 3, 2]].mean(0)):
        return ["debiased_centroid is not the mean of the three farthest of six centres (alpha 0.4)"]
    answer, problem = _try(function, centres[:1], distance[:1], 0.4)
    return [problem or "debiased_centroid of a single centre must be that centre"] if problem or not _same(answer, centres[0]) else []


def check_delete(function) -> list[str]:
    labels = torch.tensor([[1, 1, 2, 0, 255, 2]])
    V = torch.tensor([[0.0, 0, 0], [2.0, 0, 0], [0, 0.5, 0], [0, 0, 1.0]])
    codes = torch.tensor([[3.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1], [1.0, 0, 0]]).T[:, None]
    tags = torch.tensor([1.0, 1.0, 0.0])
    answer, problem = _try(function, labels, codes, V, tags, 0.5)
    if problem:
        return [problem]
    answer = answer.flatten().tolist()
    if answer == [1, 1, 254, 0, 255, 2]:
        return []
    if len(answer) == 6 and answer[3] == 254:
        return ["delete touched background: Eq. (5) only takes pixels away from foreground classes"]
    if len(answer) == 6 and answer[4] == 254:
        return ["delete turned 255 into 254: ignored pixels are no class and stay ignored"]
    if answer == [1, 254, 254, 0, 255, 254]:
        return ["delete compares each pixel with the centroid of its own label; Eq. (4) takes the maximum over the image's classes"]
    if answer == [1, 1, 2, 0, 255, 2]:
        return ["delete used a class that is not in the image: only rows of V whose tag is 1 count"]
    if answer == [1, 1, 0, 0, 255, 2]:
        return ["delete made background of deleted pixels: they become 254, to be decided in training"]
    return [f"delete gave {answer}, expected [1, 1, 254, 0, 255, 2]"]


def check_certainty(function) -> list[str]:
    labels = torch.tensor([[254, 254, 1, 255]])
    probability = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]).T[:, None]
    tags = torch.tensor([1.0, 0.0])
    expected = {False: [0.1, 0.7, 1, 1], True: [0.6, 0.7, 1, 1]}
    for with_background in (False, True):
        answer, problem = _try(function, labels, probability, tags, with_background)
        if problem:
            return [problem]
        values = [round(float(v), 4) for v in answer.flatten()]
        if values == expected[with_background]:
            continue
        if values[2:] != [1, 1]:
            return ["certainty must be 1 wherever nothing was deleted"]
        if not with_background and values[0] == 0.6:
            return ["certainty counted background although Eq. (6) as printed has foreground classes only"]
        if with_background and values[0] == 0.1:
            return ["certainty ignored with_background=True"]
        if values[0] == 0.3:
            return ["certainty counted a class that the tags rule out"]
        return [f"certainty gave {values} for with_background={with_background}, expected {expected[with_background]}"]
    return []


def check(module) -> list[str]:
    return [problem for part, name in ((check_distance, "background_distance"), (check_centroid, "debiased_centroid"), (check_delete, "delete"),
                                       (check_certainty, "certainty")) for problem in part(getattr(module, name))]
