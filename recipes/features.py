"""Classify with scikit-learn on the features of a frozen model, extracted once: the quickest baseline there is.

    accelerate launch recipes/features.py
    accelerate launch recipes/features.py --strategy "Features(classifier='svm', layers='all')"
    accelerate launch recipes/features.py --task image-classification --model timm/resnet18.a1_in1k --data photos/

The first command needs no network: logistic regression on what MiniLM-L6's own head reads, on 1,000 product reviews.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="text-classification",
    model="sentence-transformers/all-MiniLM-L6-v2",
    data="hftl:reviews",
    strategy="Features",
    output_dir="runs/features",
)

if __name__ == "__main__":
    main(RECIPE)
