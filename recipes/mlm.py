"""Pre-train an encoder further on unlabelled text: masked tokens, on the task's own texts or on its domain's.

    accelerate launch recipes/mlm.py
    accelerate launch recipes/mlm.py --data papers.csv --model bert-base-uncased --whole_words --add_tokens 500
    accelerate launch recipes/mlm.py --data papers.csv --output_dir runs/mlm &&
    accelerate launch recipes/text_cls.py --model runs/mlm --data labelled.csv

The first command needs no network: MiniLM-L6 on the 1,000 bundled product reviews, of which only the texts are read.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="fill-mask",
    model="sentence-transformers/all-MiniLM-L6-v2",
    data="hftl:reviews",
    learning_rate=1e-4,
    num_train_epochs=10,
    per_device_eval_batch_size=16,
    output_dir="runs/mlm",
)

if __name__ == "__main__":
    main(RECIPE)
