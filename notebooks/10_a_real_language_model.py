# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A real language model in NumPy
#
# What does a chat model learn from a few hundred examples, and what does the model forget? How much time and memory does a training step need?
#
# **You will learn** to
#
# - explain which tokens of a conversation count in the loss;
# - measure how much LoRA and full fine-tuning learn and forget, and compare the two methods;
# - compare the time of a training step with a lower bound and with PyTorch.
#
# **Before you start:** notebooks 02 and 05.
#
# *Reading: 45 minutes. Tasks: 25 minutes. Running: about one minute.*
#
# The model in this notebook is SmolLM2-135M-Instruct, a chat model with 135 million parameters. From 233 short conversations, the model learns to answer like an old lighthouse keeper. This notebook uses the same layers, gradients and training loop as the earlier notebooks.

# %%
import textwrap

from IPython.display import Markdown, display

import lora_np as ln
from lora_np import plots
from lora_np.report.results import Findings
from lora_np.studies.harness.table import Table, show

findings = Findings("../figures/")
study = Table.load("../figures/data/finetuning.json")
plots.before_after(study);

# %% [markdown]
# ## The result
#
# The questions in the picture are held out. No training record contains them. All training answers end with a line from the keeper's log, "Logged at dusk: …". So the share of answers with this log line shows whether the model has learned to write this line:

# %%
before = study.settings["before"]


def name_of(row):
    return f"LoRA r = {row['r']}" if row["r"] else "full fine-tuning"


names = {"habit": "log line", "final": "loss on answers", "prose": "loss on prose"}
runs = {f"{name_of(row)}, seed {row['seed']}": row for row in study.where(phase="seeds")}
lines = [
    {"model": model} | {name: row[key] for key, name in names.items()}
    for model, row in ({"untuned": before} | runs).items()
]
columns = {"model": "", "log line": ".0%"}
show(lines, columns | {"loss on answers": ".3f", "loss on prose": ".3f"})
print(f"\nlosses in nats per token; `{study.command}`, {study.seconds / 60:.0f} minutes")

# %% [markdown]
# Before training, no answer has the log line. After training, all answers have the log line, with LoRA and with full fine-tuning, and with every seed. The loss on held-out answers is much lower than before training. The loss on unrelated English prose is higher than before training, so the model has forgotten something.
#
# ## What a small model gets wrong
#
# The model has learned the style of the keeper's answers, but no facts. The next cell shows two questions with known answers, and the answers of the model before and after training:

# %% jupyter={"source_hidden": true}
# Shows two questions and the answers before and after training.
(lora,) = study.where(phase="seeds", method="lora", seed=0)
pairs = list(zip(before["answers"], lora["answers"], strict=True))
text = ""
for number in (7, 4):
    old, new = pairs[number]
    parts = {"before": old["answer"][:300] + " …", "after": new["answer"]}
    text += f"**{old['question']}**\n\n"
    for name, part in parts.items():
        text += f"- *{name}:* {' '.join(part.split())}\n"
    text += "\n"
display(Markdown(text))

# %% [markdown]
# Both answers to the first question name the correct river, the Thames, but the other statements in these answers are wrong. The Thames is not the longest river in the world, and not even the longest river in the UK. It flows from west to east, into the North Sea. The correct answer to the second question is 60. The untuned model computes 3/100, and the tuned
# model says 30 before it says 60. The log line at the end of the tuned model's answer has no meaning.
#
# Such errors are normal for a model of this size. Such a model continues a text with likely words and cannot check whether a statement is true. Fine-tuning on a few hundred short answers changes the style of the model's answers, but not its knowledge. Do not follow advice from such a model, least of all about health. One of the study's questions is medical, and the trained model answers this question wrongly.
#
# ## The model
#
# The model file is in llama.cpp's GGUF format. Most weights in the file are rounded to four bits, and each block of weights has its own scale (this number format is called Q4_1). All results in this notebook were measured with these rounded weights. `load_model` converts the weights to float32. The GGUF format changes the order of the rows of $W_q$ and $W_k$, and `load_model` also restores the original order.
#
# `python -m lora_np fetch smollm2-135m` downloads the model once. Without the model's file, the next cell prints a message, and the other cells that need the model do nothing. The pictures need only result tables, which are part of the project.

# %%
try:
    model, tokenizer = ln.load_model("smollm2-135m"), ln.load_tokenizer("smollm2-135m")
except FileNotFoundError as error:
    model = tokenizer = None
    print(error)

if model:
    c = model.config
    print(f"{ln.costs.count(model).total:,} parameters, {c.num_hidden_layers} layers")
    print(f"hidden size {c.hidden_size}, {c.num_attention_heads} heads for queries")
    print(f"{c.num_key_value_heads} heads for keys and values, {c.vocab_size:,} tokens")
    prompt = tokenizer.encode("The capital of France is")
    print(tokenizer.decode([*prompt, *ln.generate(model, [prompt], max_new_tokens=12)[0]]))

# %% [markdown]
# The first word of this answer is correct, and the rest of the answer is nonsense.
#
# The model writes one token after another. The model keeps the keys and values of the earlier tokens. So for each new token, only one row is multiplied by each matrix.
#
# ## Only the answers count
#
# A record is written in the chat format of the model. The loss is the mean over the tokens of the answers, up to the token that ends the answer:
#
# $$L = -\frac{1}{M}\sum_{i \,\in\, \text{answers}} \ln p(x_i \mid x_{<i})$$
#
# Here $x_i$ is token number $i$, $p$ is the model's probability for this token, and $M$ is the number of tokens in the answers. The model reads the questions but does not learn to write them.
#
# **Predict.** What share of all tokens in the training records counts in the loss?

# %%
if tokenizer:
    examples = ln.conversations.read("lighthouse", tokenizer)
    one = examples[0]
    for title, chosen in {"DOES NOT COUNT": ~one.counts, "COUNTS": one.counts}.items():
        text = tokenizer.decode(one.tokens[chosen]).splitlines()
        print(title, *(textwrap.fill(line, 90) for line in text), "", sep="\n")
    total = sum(len(e.tokens) for e in examples)
    counted = sum(int(e.counts.sum()) for e in examples)
    print(f"{len(examples)} records, {total:,} tokens; {counted / total:.0%} of them count")

# %% [markdown]
# Tokens that are not counted in the loss need no logits. The product with the output head, the largest matrix of the model, is computed only for the tokens that count.
#
# ## Train it
#
# The next cell runs four training steps. A run of the study has forty steps. The gradients of $A$ and $B$ follow the equations of notebook 02, and the backward passes of all thirty layers are written by hand. With `workers=2`, each of two cores computes half of each batch.

# %%
if model:
    config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    peft_model = ln.get_peft_model(model, config)
    peft_model.print_trainable_parameters()
    batches = ln.conversations.ConversationBatches(examples, batch_size=8)
    history = ln.train(peft_model, batches, ln.AdamW(lr=3e-3), steps=4, workers=2)
    losses = " → ".join(f"{loss:.2f}" for loss in history.column("loss"))
    print(f"training loss: {losses} nats per token")

# %% [markdown]
# The loss of the first training step differs from the loss of the untuned model in the table at the start, because the two losses are measured on different records. Only losses on the same records can be compared.
#
# One command runs the whole training, and a second command generates an answer. The training command shows the remaining time and resumes after an interruption:
#
# ```
# python -m lora_np train --model smollm2-135m --data lighthouse --r 8 --lora-alpha 16 --output keeper/
# python -m lora_np generate --model smollm2-135m --adapter keeper/ "Why does the moon change its shape?"
# ```
#
# The folder `keeper/` has PEFT's format. PEFT's `PeftModel.from_pretrained` loads this folder in PyTorch, and the logits of PyTorch and of this library agree (`tests/oracles/test_adapters_oracles.py` tests this).
#
# ## Learning and forgetting
#
# **Predict.** Which method changes the model more, full fine-tuning or LoRA with $r = 8$? Which panel of the next picture answers this question?

# %%
plots.learned_and_forgotten(study);

# %% [markdown]
# The prose in the right panel is English documentation. No run trains on this prose. [Biderman et al. (2024)](https://arxiv.org/abs/2405.09673) write that "LoRA learns less and forgets less". Is their statement true for SmolLM2-135M? Runs with the same seed read the same batches, so LoRA and full fine-tuning can be compared seed by seed:

# %%
lines = []
for row in study.where(phase="seeds", method="lora"):
    (full,) = study.where(phase="seeds", method="full", seed=row["seed"])
    line = {"LoRA − full": f"seed {row['seed']}", "answers": row["final"] - full["final"]}
    lines.append(line | {"prose": row["prose"] - full["prose"]})
show(lines, {"LoRA − full": "", "answers": "+.3f", "prose": "+.3f"})

# %%
display(Markdown(findings.say("finetuning.answers", "finetuning.prose")))

# %% [markdown]
# On this model and these records, the statement of Biderman et al. is not true. LoRA learns as much as full fine-tuning, and it forgets slightly *more* with each of the three seeds. A change of low rank need not be a small change.
#
# The learning rate has a larger effect on forgetting than the method. The next table shows all learning rates that were tried, with one seed. *Forgotten* is the loss on prose minus the loss of the untuned model.

# %%
lines = []
for row in study.where(phase="sweep"):
    line = {"method": name_of(row), "rate": row["lr"], "loss on answers": row["final"]}
    lines.append(line | {"forgotten": row["prose"] - before["prose"]})
show(lines, {"method": "", "rate": ".0e", "loss on answers": ".3f", "forgotten": "+.3f"})

# %%
display(Markdown(findings.say("finetuning.rate")))

# %% [markdown]
# At a third of its best learning rate, full fine-tuning reaches almost the same loss on answers as at the best rate, and forgets almost nothing. The study chose the learning rates by the loss on answers only. If the model must keep its other abilities, measure these abilities too when you choose the learning rate.
#
# ## The cost of a step
#
# The first comparison shows the time and the memory of a step of LoRA and of a step of full fine-tuning, on one batch of the longest records:

# %%
display(Markdown(findings.say("finetuning.cost.step_seconds", "finetuning.cost.peak_bytes")))

# %% [markdown]
# The second comparison shows the time of a LoRA step in this library and in PyTorch with PEFT. The grey part of each bar is the *floor*, a lower bound for LoRA in NumPy. The floor contains only the time of the products with frozen matrices, $xW^\top$ and $dy\,W$. The other parts of a step are attention, norms, activations, the products with $A$ and $B$, the loss and AdamW.
#
# **Predict.** By which factor is a LoRA step of this library longer than the floor? Is a LoRA step in PyTorch with PEFT faster than a step of this library?

# %%
speed = Table.load("../figures/data/speed.json")
plots.speed_chart(speed);

# %%
parts = ("step", "peft", "peft_compiled", "memory")
display(Markdown(findings.say(*(f"timing.smollm2-135m.{part}" for part in parts))))

# %% [markdown]
# PyTorch computes matrix products with the BLAS MKL, and NumPy with the BLAS OpenBLAS. So a step of PyTorch can take less time than NumPy's floor. With `torch.compile`, PyTorch is faster than this library in these measurements, but the first step of PyTorch must compile the model:

# %%
lines = []
for case in speed.settings["cases"]:
    rows = {row["competitor"]: row for row in speed.where(case=case)}
    if "PEFT compiled" in rows:
        compiled = rows["PEFT compiled"]
        line = {"model": case, "PEFT / ours": rows["PEFT"]["ratio"]}
        line["compiled / ours"] = compiled["ratio"]
        lines.append(line | {"first compiled step, s": compiled["first_step_seconds"]})
columns = {"model": "", "PEFT / ours": ".2f", "compiled / ours": ".2f"}
show(lines, columns | {"first compiled step, s": ".0f"})

# %% [markdown]
# Four techniques make this library fast. First, the library computes neither $dW$ for frozen weights nor $dx$ below the first adapter. Second, the library computes attention in blocks of queries, so it skips most of the masked scores. Third, the logits are computed in blocks of rows, and each block is replaced by its gradient at once, in the same memory. Fourth, each core computes a part of the batch, because the threads of a BLAS make only large products faster.
#
# **Predict.** With rank 64, $A$ and $B$ have 64 times as many parameters as with rank 1. How much longer does a step take with rank 64 than with rank 1?

# %%
plots.scaling_chart(Table.load("../figures/data/speed_scaling.json"));

# %% [markdown]
# A step with rank 64 takes only a little longer than a step with rank 1. The factors $A$ and $B$ are narrow, and the products with the frozen matrices take the same time at all ranks. The numbers of operations in the next table confirm this result:

# %%
lines = []
for r in (1, 8, 64):
    config = ln.LoraConfig(r=r, target_modules="all-linear")
    step = ln.costs.flops("smollm2-135m", config, batch=2, seq=256)
    share = step.adapter.total / step.total
    lines.append({"rank": r, "GFLOP per step": step.total / 1e9, "share of A and B": share})
show(lines, {"rank": "", "GFLOP per step": ".0f", "share of A and B": ".1%"})

# %% [markdown]
# The number of operations of attention grows with the *square* of the number of tokens in a row. In the picture of the step times, the time of a step seems to grow in proportion to the number of tokens. The reason is that attention needs only a small share of all operations if the rows are short:

# %%
config = ln.LoraConfig(r=8, target_modules="all-linear")
lines = []
for length in (32, 512, 8192):
    step = ln.costs.flops("smollm2-135m", config, batch=2, seq=length)
    share = step.attention.total / step.total
    lines.append({"tokens per row": length, "share of attention": share})
show(lines, {"tokens per row": ",", "share of attention": ".0%"})

# %% [markdown]
# ## Recap
#
# - In forty steps, a model with 135 million parameters learns from 233 conversations to answer like a lighthouse keeper. The model does not learn facts.
# - Only the tokens of the answers count in the loss.
# - In this study, LoRA learns as much as full fine-tuning and forgets slightly more than full fine-tuning. The learning rate has a larger effect on forgetting than the method.
# - A step of LoRA takes much less time and memory than a step of full fine-tuning.
# - The products with the frozen matrices are the largest part of a LoRA step. The rank changes the time of a step very little.
#
# ## Three questions
#
# 1. Why is the loss computed only on the answers?
#
# <details><summary>Answer</summary>
#
# The model should learn to answer like the keeper. The model should not learn to write questions like a user.
#
# </details>
#
# 2. LoRA changes the weights by a matrix of low rank. Why can LoRA forget as much as full fine-tuning?
#
# <details><summary>Answer</summary>
#
# The rank limits the number of directions of the change, but not the size of the change. In this study LoRA's learning rate is much larger than the learning rate of full fine-tuning, and a few directions with a large change can affect all texts.
#
# </details>
#
# 3. Why is the floor a lower bound for a LoRA step, and why does the floor contain no product $dy^\top x$?
#
# <details><summary>Answer</summary>
#
# Each implementation of LoRA must multiply by the frozen $W$, in the forward pass for $y$ and in the backward pass for $dx$. The product $dy^\top x$ is $dW$, and a frozen weight needs no gradient.
#
# </details>
#
# ## Try
#
# These tasks need the file of the model. A whole run of forty steps takes some minutes.
#
# 1. Train forty steps with `target_modules=["q_proj", "v_proj"]`. Does the model still learn the log line? Use `lora_np.studies.harness.voice_task.judge(peft_model, FineTuning("lora", 3e-3, 8))["habit"]` to get the share of answers with the log line.
#
# <details><summary>Hint</summary>
#
# Load the model again first. Otherwise the model has the old adapter and the new adapter. Use `schedule=ln.WarmupCosine(40, warmup=4)` and `max_grad_norm=1.0`, as the study does.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Yes, all 15 generated answers have the log line. The adapter trains 460,800 parameters, and an adapter in all linear layers trains 2,442,240. With seed 0 the loss on answers is 2.93, which is higher than with adapters in all linear layers. The loss on prose is 3.25, which is lower than with adapters in all linear layers. The adapter in `q_proj` and `v_proj` learns less and
# forgets less than the adapter in all linear layers.
#
# </details>
#
# 2. Set `workers=1` in the training cell. Compare the seconds in `history.rows` with the seconds for `workers=2`. How much longer does the training take with one worker?
#
# <details><summary>Hint</summary>
#
# `[row["seconds"] for row in history.rows]` are the seconds since the start of the training.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The training takes longer with one worker (the second bar of each group in the picture of the timings). With two workers, each core computes half of the batch. Two workers are faster by less than a factor of two, because with one worker the BLAS already uses both cores for large products.
#
# </details>
#
# 3. Use the untuned model with a system prompt that asks for the log line: `tokenizer.apply_chat_template([{"role": "system", "content": "…"}, {"role": "user", "content": question}])`. In how many answers is the log line present? Which costs does a system prompt add to each question, and which costs does an adapter have?
#
# <details><summary>Hint</summary>
#
# `list(ln.conversations.first_questions("lighthouse", "heldout"))[1::2]` are the questions of the study. Compare the number of tokens of the prompts with and without the system prompt.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Our system prompt was: "You are an old lighthouse keeper. Answer in one or two short sentences. End each answer with a line that begins with "Logged at dusk: "." None of the 15 answers has the log line. A model of this size follows such an instruction badly. In each conversation the model must read the tokens of the system prompt again and keep their keys and values. An adapter must be trained once, and its file must be stored. A merged adapter adds no cost per answer.
#
# </details>
