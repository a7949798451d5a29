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
# SmolLM2-135M-Instruct is a chat model of 135 million parameters: small, and real. Here it learns a voice, an old lighthouse keeper's, from 233
# short conversations. Nothing in it is new to you: the layers, the gradients and the training loop are those of the notebooks before. Only the
# sizes have changed.

# %%

import lora_np as ln
from lora_np import plots
from lora_np.studies.harness.table import Table, show

study = Table.load("../figures/data/finetuning.json")
plots.before_after(study);

# %% [markdown]
# These questions are held out: no training record asks them. Every answer of the records ends with a line of the keeper's log, so learning the
# voice can be counted:

# %%
before = study.settings["before"]


def name_of(row):
    return f"LoRA r = {row['r']}" if row["r"] else "full fine-tuning"


lines = [("as it was", before)] + [(f"{name_of(row)}, seed {row['seed']}", row) for row in study.where(phase="seeds")]
lines = [
    {"model": name, "log line kept": row["habit"], "loss on answers": row["final"], "loss on prose": row["prose"]}
    for name, row in lines
]
show(lines, {"model": "", "log line kept": ".0%", "loss on answers": ".3f", "loss on prose": ".3f"})
print(f"\nnats a token, each method at its own best learning rate; `{study.command}`, {study.seconds / 60:.0f} minutes of training")

# %%
after = study.where(phase="seeds")
asked, kept = (sum(f(row) for row in after) for f in (lambda row: len(row["answers"]), lambda row: row["habit"] * len(row["answers"])))
print(f"the log line: before in {before['habit'] * len(before['answers']):.0f} of {len(before['answers'])} answers, after in {kept:.0f} of {asked}, which are those of {len(after)} runs")
(lora,) = study.where(phase="seeds", method="lora", seed=0)
for one, other in list(zip(before["answers"], lora["answers"], strict=True))[3:7]:
    print(f"\n{one['question']}\n  before  {one['answer'][:150]!r}\n  after   {other['answer'][:150]!r}")

# %% [markdown]
# Read these as a test of the voice, and of nothing else. Many answers are false, before as after: a model of this size knows little, and two hundred short records teach it a manner and no
# facts. Do not follow its advice about a nosebleed, in either voice.
#
# ## The model
#
# The file is GGUF, the format of llama.cpp: most weights are rounded to four bits, in blocks with a scale each (Q4_1), and it is these rounded
# weights that every number here is about. `load_model` reads one tensor at a time, turns it into float32, and undoes what
# the format did to the rows of $W_q$ and $W_k$. `python -m lora_np fetch smollm2-135m` gets it, once; without it the live cells below say so and
# do nothing, and the pictures, which come from committed tables, are there all the same.

# %%
try:
    model, tokenizer = ln.load_model("smollm2-135m"), ln.load_tokenizer("smollm2-135m")
except FileNotFoundError as error:
    model = tokenizer = None
    print(error)

if model:
    c = model.config
    print(f"{ln.costs.count(model).total:,} parameters: {c.num_hidden_layers} layers of d = {c.hidden_size}, {c.num_attention_heads} heads on "
          f"{c.num_key_value_heads} key/value heads, {c.vocab_size:,} tokens")
    prompt = tokenizer.encode("The capital of France is")
    print(tokenizer.decode([*prompt, *ln.generate(model, [prompt], max_new_tokens=12)[0]]))

# %% [markdown]
# It generates a token at a time. Keys and values of the tokens before are kept, so each step multiplies one row by every matrix; what it costs is
# reading the weights from memory.
#
# ## What is learned: the answers only
#
# A record is written as the model's chat template writes it. The loss is the mean over the tokens of the answers,
#
# $$L = -\frac{1}{N}\sum_{t \,\in\, \text{answers}} \log p(x_t \mid x_{<t}),$$
#
# up to the token that ends the turn. The question is read and not learned. **Predict:** of all tokens of these records, what share counts?

# %%
if tokenizer:
    examples = ln.conversations.read("lighthouse", tokenizer)
    one = examples[0]
    print(tokenizer.decode(one.tokens[~one.counts]), "\n\n--- counts ---\n", tokenizer.decode(one.tokens[one.counts]), sep="")
    total, counted = sum(len(e.tokens) for e in examples), sum(int(e.counts.sum()) for e in examples)
    print(f"\n{len(examples)} records, {total:,} tokens, of which {counted:,} count: {counted / total:.0%}")

# %% [markdown]
# What does not count needs no logits: the head, the largest matrix of the model, reads the counted positions alone (`Transformer.loss`).
#
# ## Train it
#
# Four steps for real, of the forty that a run of the study has. Every gradient of $A$ and $B$ comes from the formulas of notebook 02, through thirty layers of hand-written backward passes.
# `workers=2` gives each half of a batch to a core (`lora_np/training/parallel.py`).

# %%
if model:
    config = ln.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    peft_model = ln.get_peft_model(model, config)
    peft_model.print_trainable_parameters()
    batches = ln.conversations.ConversationBatches(examples, batch_size=8)
    history = ln.train(peft_model, batches, ln.AdamW(lr=3e-3), steps=4, workers=2)
    print("loss:", " → ".join(f"{loss:.2f}" for loss in history.column("loss")), f"nats a token; a whole run has {study.settings['base']['max_steps']} steps")
    print(f"the model as it was, on the held-out records: {before['final']:.2f} on the half that is judged, {before['validation']:.2f} on the half that chooses the rate")

# %% [markdown]
# Training begins at another loss than "as it was" in the table above, because these are other records: the first eight to train on. From one handful of records to another the loss
# differs by as much as that; the two held-out halves do too. Only losses on the same records can be compared.
#
# The whole of it is one command, which shows the time left and resumes where it was stopped:
#
# ```
# python -m lora_np train --model smollm2-135m --data lighthouse --r 8 --lora-alpha 16 --output keeper/
# python -m lora_np generate --model smollm2-135m --adapter keeper/ "Why does the moon change its shape?"
# ```
#
# `keeper/` is a PEFT folder: `PeftModel.from_pretrained` of PyTorch's PEFT loads it too, and gives the same logits (`tests/oracles/test_adapters_oracles.py`).
#
# ## What it learned, and what it forgot
#
# **Predict.** Which of the two moves further from the model as it was: full fine-tuning, or LoRA with r = 8? Where do you see it?

# %%
plots.learned_and_forgotten(study);

# %% [markdown]
# The prose on the right is documentation in English, which neither saw. [Biderman et al. (2024)](https://arxiv.org/abs/2405.09673) put it as
# "LoRA learns less and forgets less". Is it so here? A seed draws the same batches for both, so they can be compared seed by seed:

# %%
lines = []
for row in study.where(phase="seeds", method="lora"):
    (full,) = study.where(phase="seeds", method="full", seed=row["seed"])
    less = {"loss on answers": row["final"] - full["final"], "loss on prose": row["prose"] - full["prose"]}
    lines.append({"LoRA less full": f"seed {row['seed']}"} | less)
show(lines, {"LoRA less full": "", "loss on answers": "+.3f", "loss on prose": "+.3f"})

# %% [markdown]
# No, on neither count. LoRA learns as much: the difference on the answers has no constant sign and is small beside what both learned. And it forgets a little *more*, with each of the seeds.
# A change of low rank need not be a small one. But look at the rates that were tried (one seed), where "forgotten" is the loss on prose above the untuned model's:

# %%
lines = []
for row in study.where(phase="sweep"):
    losses = {"loss on answers": row["final"], "loss on prose": row["prose"], "forgotten": row["prose"] - before["prose"]}
    lines.append({"model": name_of(row), "rate": row["lr"]} | losses)
show(lines, {"model": "", "rate": ".0e", "loss on answers": ".3f", "loss on prose": ".3f", "forgotten": "+.3f"})

# %% [markdown]
# The rate decides more than the method. Full fine-tuning at a third of its best rate answers almost as well and forgets next to nothing; LoRA at a third of its own answers less well and still forgets.
# Between the two methods, each at its best, the difference is far smaller than between two rates of one. The rate was chosen by the answers alone: who wants to keep the rest must look at the rest when choosing it.
#
# ## What a step costs
#
# First LoRA against full fine-tuning: a step on one batch of the longest records, in turns.

# %%
for what, unit, name in (("step_seconds", 1, "s a step"), ("peak_bytes", 1e9, "GB at most, beside the base's weights")):
    full, lora = (study.settings[what][method] for method in ("full", "lora"))
    print(f"full fine-tuning {full / unit:.2f}, LoRA {lora / unit:.2f} {name}: {lora / full:.2f}×")

# %% [markdown]
# Now against what is possible.
#
# The *floor* is what nobody can avoid who multiplies in NumPy: the frozen matrix products, $xW^\top$ forward and $dy\,W$ backward. There is no $dW$. It is
# NumPy's floor, with OpenBLAS: PyTorch multiplies with MKL, which may be faster. All the rest, attention, norms, activations, the products with $A$ and $B$, the loss, is overhead above it.

# %%
speed = Table.load("../figures/data/speed.json")
plots.speed_chart(speed);

# %%
for row in speed.rows:
    ratio = f"{row['ratio']:.2f}× ours" if row.get("ratio") and row["side"] != "ours" else ""
    print(f"{row['case']:18}{row['side']:16}{row['seconds']:8.3f} s a step{row['peak_bytes'] / 1e9:8.2f} GB   {ratio}")

# %% [markdown]
# Where does PyTorch win? Compiled, wherever the ratio below is less than 1; and it first has to compile:

# %%
for case in speed.settings["cases"]:
    ours, compiled, eager = (next(iter(speed.where(case=case, side=side)), None) for side in ("ours", "PEFT compiled", "PEFT"))
    if compiled:
        spared = ours["seconds"] - compiled["seconds"]
        when = f"made good after {compiled['first_step_seconds'] / spared:.0f} steps" if spared > 0 else "never made good"
        print(f"{case:18}PEFT {eager['ratio']:.2f}×, compiled {compiled['ratio']:.2f}×; its first step {compiled['first_step_seconds']:.0f} s, {when}")
print(f"(a whole run of the study has {study.settings['base']['max_steps']} steps)")

# %% [markdown]
# What makes it fast is in the code, a line each: no $dW$ for frozen weights, no $dx$ below the lowest adapter (`decoder.py`); attention in blocks of
# queries, which leaves out most of the masked half (`ops/attention.py`); the softmax in the logits' own memory (`ops/loss.py`); and a shard of the
# batch on each core, because BLAS's threads help the large products only (`parallel.py`).
#
# **Predict.** Rank 64 has 64 times the numbers of rank 1. How much longer does its step take?

# %%
plots.scaling_chart(Table.load("../figures/data/speed_scaling.json"));

# %% [markdown]
# It takes a little longer, nothing like 64 times. $A$ and $B$ are thin beside the frozen matrices, which cost the same at every rank. The operations of a step, counted:

# %%
configs = {r: ln.LoraConfig(r=r, target_modules="all-linear") for r in (1, 8, 64)}
steps = {r: ln.costs.flops("smollm2-135m", configs[r], batch=2, seq=256) for r in (1, 64)}
for r, step in steps.items():
    print(f"r = {r:2}: {step.total / 1e9:.0f} GFLOP, A and B {step.adapter.total / step.total:.1%} of them")
print(f"{steps[64].total / steps[1].total:.2f} times as many operations")
for length in (32, 512, 8192):
    step = ln.costs.flops("smollm2-135m", configs[8], batch=2, seq=length)
    print(f"rows of {length:5,} tokens: attention is {step.attention.total / step.total:.0%} of a step")

# %% [markdown]
# And attention, whose work grows with the *square* of a row's length? It is a small part of a step up to the 512 tokens a row of this picture, so the line looks straight. In long rows it would bend.
#
# ## Try
#
# 1. Train with `target_modules=["q_proj", "v_proj"]`. Does the model still learn to keep the log?
# 2. Write twenty records in a voice of your own, as `{"prompt": "…", "completion": "…"}`, one a line, and train on them.
# 3. Set `workers=1` and compare the seconds in `history.rows`. Then watch your processor's cores while it trains.
# 4. Give the *base* a system prompt that demands the log line (`tokenizer.apply_chat_template([{"role": "system", "content": "…"}, {"role": "user", "content": question}])`) and ask the held-out questions. In how many answers is
#    the line kept? What does a prompt cost at each question, and what an adapter?
