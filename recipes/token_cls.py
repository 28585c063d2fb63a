"""Fine-tune a pre-trained encoder to tag the words of a text: names, parts of speech.

    accelerate launch recipes/token_cls.py --data conll/ --model bert-base-cased
    accelerate launch recipes/token_cls.py --data news.jsonl --tokens words --label ner --strategy "LoRA(r=16)"

Each row holds a list of words and a list of as many tags, as jsonl and parquet files and the Hub's data sets have them.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="token-classification",
    model="sentence-transformers/all-MiniLM-L6-v2",
    output_dir="runs/token_cls",
)

if __name__ == "__main__":
    main(RECIPE)
