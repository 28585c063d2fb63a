"""Train one encoder on several tasks at once, and see of each whether the others helped it.

accelerate launch recipes/multitask.py
accelerate launch recipes/multitask.py --tasks sst2=sst2/ stsb=stsb/ --mixing temperature --output_dir runs/both
"""

from hftl import MultiTaskRecipe, main

RECIPE = MultiTaskRecipe(
    model="sentence-transformers/all-MiniLM-L6-v2",
    tasks=["sentiment=hftl:reviews", "domain=hftl:reviews,label=domain"],
    num_train_epochs=3,
    output_dir="runs/multitask",
)

if __name__ == "__main__":
    main(RECIPE)
