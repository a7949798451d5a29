"""The job of with_lora_np.py in transformers and PEFT: the same base, adapter, batches, learning rates and loss.

A step may divide its batch into pieces of `rows` records and add up their gradients. Smaller pieces need less memory,
and each piece is padded only to its own longest record. A piece needs no attention mask, because the padding is on the
right. The settings contain the records of each batch. The batches equal the batches of with_lora_np.py.
"""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers

IGNORED = -100  # the label of a token that does not count in the loss


def example(messages, tokenizer):
    """Return the tokens and the labels of a conversation. Each answer counts, up to the end-of-text token after the answer.

    So the chat template must write this token after each answer.
    """

    def encoded(turns, **options):
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
        return tokenizer(text, add_special_tokens=False).input_ids

    ids = encoded(messages)
    labels, stop = [IGNORED] * len(ids), 0
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(encoded(messages[:i], add_generation_prompt=True))
            stop = ids.index(tokenizer.eos_token_id, start) + 1
            labels[start:stop] = ids[start:stop]
    return ids[:stop], labels[:stop]


def padded(rows, value):
    """Return lists of different lengths as one tensor, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    print("import", flush=True)

    tokenizer = transformers.AutoTokenizer.from_pretrained(task["base"])
    base = transformers.AutoModelForCausalLM.from_pretrained(task["base"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, task["adapter"], is_trainable=True)
    records = Path(task["data"]).read_text(encoding="utf-8").splitlines()
    examples = [example(json.loads(record)["messages"], tokenizer) for record in records]
    print("load", flush=True)

    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=0.0)
    losses = []
    for numbers, rate in zip(task["batches"], task["rates"], strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        batch, loss = [examples[number] for number in numbers], 0.0
        counted = sum(label != IGNORED for _, labels in batch for label in labels)
        for start in range(0, len(batch), task["rows"]):
            piece = batch[start : start + task["rows"]]
            tokens, labels = padded([ids for ids, _ in piece], 0), padded([labels for _, labels in piece], IGNORED)
            part = model(input_ids=tokens, labels=labels, num_items_in_batch=counted, use_cache=False).loss
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(trainable, task["max_grad_norm"])
        optimizer.step()
        losses.append(loss)
    print("train", flush=True)

    model.save_pretrained(task["output"])
    print(json.dumps(losses), flush=True)
    sys.stdin.read()  # until study.py has read the peak memory of this process
