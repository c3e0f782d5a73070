"""The weakly supervised chain, lessons 09 and 10 together: what is MARS worth on top of CAM, and on top of BAS?

    tags --> CAM or BAS masks --> biased labels --> MARS (the same features, the same settings) --> the same segmenter

    python -m lessons.chain threads=1 seeds=0,1,2

One seed trains one set of unsupervised features, two classifiers and four segmenters; the settings are the toy's of `method=marsstyle`, and every
key of it may be typed. Written to runs/claims/chain/.
"""
import shlex
import sys

from seglite import cam, pseudo
from seglite import claims as seeds
from seglite.config import override
from seglite.evaluate import evaluate
from seglite.papers import marsstyle as mars
from seglite.train import CONTINUES, guarded

Settings, RECIPES, supervision = mars.Settings, mars.RECIPES, mars.supervision
LABELS = "Pseudo labels, training images: {}"
SEGMENTERS = "Segmenter, validation images: {}"
SOURCES = ("cam", "bas")
CONSTANTS = (0.4,)  # besides the recipe's cam_background: what suits biased labels best (lesson 10)


def one_source(run, kind: str, codes_of) -> tuple[dict, dict]:
    """Scores of the labels and of the segmenters, for biased labels from `kind`."""
    world = type(run)(override(run.config, wsss=kind, out=str(run.folder / kind)), supervision=run.supervision, quiet=run.quiet)
    try:
        config, data, truth = world.config, world.data("train", ("image", "tags")), world.truth("train")
        classifier = mars.fit_classifier(world)
        biased = mars.biased_labels(world, classifier)

        def debiased_maps():
            parts = list(mars.walk(world, biased, codes_of))
            return mars.debias(parts, mars.region_centres(parts, len(data.classes), config), config, data)

        debiased = world.make_labels("debiased_labels", debiased_maps, cam.names_of(data), data.palette)
        judged = lambda labels: pseudo.score(pseudo.compare(truth, labels), mars.PROBLEM)
        labels = {"biased": world.make("score_biased", lambda: judged(biased)), "+ MARS": world.make("score_debiased", lambda: judged(debiased))}
        for b in CONSTANTS:
            labels[f"biased, background {b}"] = world.make(f"score_biased_{b}", lambda: judged(
                mars.biased_labels(world, classifier, b, f"biased_{b}")))
        trained = {}
        for i, (row, maps) in enumerate({"biased": biased, "+ MARS": debiased}.items()):
            tested = mars.fit_segmenter(world, f"segmenter_{i}", maps, config)
            trained[row] = world.make(f"score_segmenter_{i}", lambda: pseudo.score(
                evaluate(mars.predictor(tested, config, data), world.truth("val"), world.device).confusion, mars.PROBLEM))
        return labels, trained
    finally:
        world.close()


def claim(run) -> dict:
    """One seed: features once, then both sources."""
    codes_of, tables = mars.fit_features(run, None), {}
    for kind in SOURCES:
        tables[LABELS.format(kind)], tables[SEGMENTERS.format(kind)] = one_source(run, kind, codes_of)
    return tables


def gains(kind: str):
    return lambda t: t[SEGMENTERS.format(kind)]["+ MARS"]["mIoU"] > t[SEGMENTERS.format(kind)]["biased"]["mIoU"]


CLAIM = {
    "title": "MARS on top of CAM and of BAS: scenes.world=mars, 1,200 images with tags",
    "headline": (SEGMENTERS.format("bas"), "mIoU", ("biased", "+ MARS")),
    "statements": {
        "MARS raises the segmenter trained on CAM's labels": gains("cam"),
        "MARS raises the segmenter trained on BAS's labels": gains("bas"),
        "false positives on the classes bound to a context fall on both":
            lambda t: all(t[SEGMENTERS.format(k)]["+ MARS"]["problem FP"] < t[SEGMENTERS.format(k)]["biased"]["problem FP"] for k in SOURCES),
    },
}


def main(arguments: list[str]) -> int:
    """Run the seeds, print and write the tables."""
    def work():
        command = shlex.join(["python", "-m", "lessons.chain", *arguments])
        summary = seeds.claims(["method=chain", *arguments], {"chain": sys.modules[__name__]}, command)
        for title, rows in summary["tables"].items():
            print("\n".join(seeds.text_table(title, rows)))
        for said in summary["statements"]:
            print(f"{'holds' if said['holds'] else 'DOES NOT HOLD'} on {said['seeds']} of {said['of']} seeds: {said['claim']}")

    return guarded(work, arguments, CONTINUES)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
