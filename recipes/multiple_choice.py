"""Fine-tune a pre-trained encoder to choose the right one of several texts: answers to a question, ends of a story.

    accelerate launch recipes/multiple_choice.py --data exam.jsonl --model bert-base-uncased
    accelerate launch recipes/multiple_choice.py --data swag/ --text context --choices endings --strategy "LoRA(r=16)"

Each row holds a question, a list of choices and the place of the right one, as jsonl and parquet files have them.
"""

from hftl import Recipe, main

RECIPE = Recipe(
    task="multiple-choice",
    model="sentence-transformers/all-MiniLM-L6-v2",
    output_dir="runs/multiple_choice",
)

if __name__ == "__main__":
    main(RECIPE)
