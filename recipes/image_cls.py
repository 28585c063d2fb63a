"""Fine-tune a pre-trained vision model to classify images.

    accelerate launch recipes/image_cls.py
    accelerate launch recipes/image_cls.py --data photos/ --model timm/resnet18.a1_in1k --strategy "LastLayers(2)"

The first command needs no network: a small network that has seen letters learns digits from 20 examples each. It gives
0.975 test accuracy (95 % interval 0.966 to 0.983, n=1397, seed 42) after 7 seconds of training on 2 CPU cores.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="image-classification",
    model="hftl:glyphs",
    data="hftl:digits",
    learning_rate=1e-3,
    num_train_epochs=20,
    per_device_train_batch_size=32,
    output_dir="runs/image_cls",
)

if __name__ == "__main__":
    main(RECIPE)
