"""Adapt a classifier to a domain without labels, and measure it there.

    accelerate launch recipes/domain_adapt.py
    accelerate launch recipes/domain_adapt.py --data books.csv --unlabelled films.csv --target_test films_test.csv
    accelerate launch recipes/domain_adapt.py --task image-classification --data photos/ --unlabelled sketches/

The first command needs no network: MiniLM-L6 learns from reviews of books, films and kitchenware, and is adapted to
reviews of electronics. DANN and seven other strategies read such rows; --source_only says whether they helped.
"""

from hftl import Adapting, Recipe, main

RECIPE = Adapting(
    Recipe(
        data="hftl:reviews/not-electronics",
        unlabelled="hftl:reviews/electronics",
        target_test="hftl:reviews/electronics",
        strategy="DANN",
        num_train_epochs=5,
        output_dir="runs/domain_adapt",
    )
)

if __name__ == "__main__":
    main(RECIPE)
