"""Pre-train an image encoder further on images without labels: SimMIM or MAE for transformers, SimCLR for CNNs.

    accelerate launch recipes/mim.py
    accelerate launch recipes/mim.py --data photos/ --model google/vit-base-patch16-224-in21k --mask 0.6
    accelerate launch recipes/mim.py --data photos/ --output_dir runs/mim &&
    accelerate launch recipes/image_cls.py --model runs/mim --data labelled/

The first command needs no network: SimCLR on scikit-learn's digits with the bundled glyphs backbone.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="image-feature-extraction",
    model="hftl:glyphs",
    data="hftl:digits",
    per_device_train_batch_size=64,
    output_dir="runs/mim",
)

if __name__ == "__main__":
    main(RECIPE)
