"""Adapt a classifier to a domain without labels, and measure it there.

    accelerate launch recipes/domain_adapt.py
    accelerate launch recipes/domain_adapt.py --data books.csv --unlabelled films.csv --target_test films_test.csv
    accelerate launch recipes/domain_adapt.py --task image-classification --model timm/mobilenetv2_100.ra_in1k \
        --data pacs/ --unlabelled sketches/ --strategy MCC --augment "Sketch(p=0.5)"

The first command needs no network: MiniLM-L6 learns from reviews of books, films and kitchenware, and is adapted to
reviews of electronics. What reads unlabelled rows are the strategies DANN, CDAN, DAN, DeepCORAL, MCC, PseudoLabel,
FixMatch and UDALM; --source_only trains without them, too, and says whether they helped.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    data="hftl:reviews/not-electronics",
    unlabelled="hftl:reviews/electronics",
    target_test="hftl:reviews/electronics",
    strategy="DANN",
    num_train_epochs=5,
    output_dir="runs/domain_adapt",
)

if __name__ == "__main__":
    main(RECIPE)
