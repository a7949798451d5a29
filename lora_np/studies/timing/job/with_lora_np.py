"""The job in this library: load a model and its records, train the adapter, save the adapter.

The script prints the name of each phase when the phase ends, and then the loss of each step. study.py runs it with the
path of a JSON file that contains the settings.
"""

import json
import sys
from pathlib import Path

import lora_np as ln
from lora_np.data import conversations

if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("import", flush=True)

    base = ln.load_model(task["base"], device="numpy")
    model = ln.PeftModel.from_pretrained(base, task["adapter"], is_trainable=True)
    examples = conversations.read(task["data"], ln.load_tokenizer(task["base"]))
    batches = conversations.ConversationBatches(examples, task["batch_size"], task["seed"], group_by_length=True)
    print("load", flush=True)

    history = ln.train(
        model,
        batches,
        ln.AdamW(task["lr"], weight_decay=0.0),
        task["steps"],
        schedule=ln.WarmupCosine(task["steps"], task["warmup"]),
        max_grad_norm=task["max_grad_norm"],
        workers=task["threads"],
        progress=False,
    )
    print("train", flush=True)

    model.save_pretrained(task["output"])
    print(json.dumps(history.column("loss")), flush=True)
    sys.stdin.read()  # until study.py has read the peak memory of this process
