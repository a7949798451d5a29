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
# # How much fits into a rank?
#
# An adapter of rank $r$ has a limited number of parameters. How many bits of training data can these parameters memorise? Does this number of bits tell you which rank to choose?
#
# **You will learn** to
#
# - compute how many bits a model has memorised from its loss on random strings;
# - explain why the measured numbers of bits are lower bounds, and why you must not compare these numbers between ranks;
# - count how many parameters of $A$ and $B$ are free.
#
# **Before you start:** [notebook 02](02_lora_from_one_equation.ipynb) and the cross-entropy loss. The last section uses training runs of [notebook 05](05_convergence.ipynb).
#
# *Reading: 40 minutes. Tasks: 20 minutes. Running: about 15 seconds.*

# %%
import numpy as np
from IPython.display import Markdown, display

import lora_np as ln
from lora_np import plots
from lora_np.report.results import Findings
from lora_np.studies.capacity import claims, study
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.tiny_task import heldout_batches

findings = Findings("../figures")
table = Table.load("../figures/data/capacity.json")

# %% [markdown]
# ## The result
#
# The next cell prints the two results that this notebook explains. Both results are lower bounds, because an adapter may be able to hold more bits.

# %%
display(Markdown(findings.say("capacity.highest", "capacity.bits.full")))

# %% [markdown]
# ## Bits from a loss
#
# A random string has no structure. A model can continue a random string only if it has memorised this string, so you can count the bits that the model has memorised.
#
# In this notebook each string begins with a *name* of two symbols, and the model is given this name. The model must predict the 16 symbols after the name. Every symbol is drawn at random from an alphabet of 64 symbols, all with the same probability. So each symbol carries $\log_2 64 = 6$ bits. The *offered* bits are the bits of all symbols that the model must predict. Suppose that a model was trained on such strings and now has a mean loss of $L$ nats per predicted symbol. Then the number of memorised bits is
#
# $$\text{memorised} = \sum_{\text{symbols}} \left(6 - \frac{L}{\ln 2}\right) \text{ bits, and at least } 0.$$
#
# - A model that knows only the alphabet and no string has $L = \ln 64$ and holds 0 bits.
# - A model that recites every string has $L = 0$ and holds all offered bits.
#
# ## Eight strings for the model "tiny"
#
# The next cells train the model "tiny" for 120 steps on eight strings. These strings contain 768 bits. Every adapter has rank 1.
#
# **Predict.** Three copies of the model have adapters of rank 1 in different matrices. The first copy has adapters in all linear layers. The second copy has adapters in the matrices q and v. The third copy has adapters in the matrix v alone. Which of the three copies recite all eight strings?

# %%
tokens = study.strings(8, length=16, seed=0)  # (8, 18): indices into the alphabet
alphabet = np.frombuffer(study.ALPHABET.encode(), np.uint8)
strings = alphabet[tokens].astype(np.int64)  # (8, 18): bytes, which tiny reads
all_eight = study.batch(strings)  # tokens and targets, (8, 17) each; the name is not counted
names, rest = strings[:, : study.KEY], strings[:, study.KEY :]  # (8, 2), (8, 16)

# %%
def memorised(loss, symbols):
    """Return the memorised bits of `symbols` symbols.

    A symbol counts 6 bits if the model is certain of the symbol, and 0 bits if the model only
    guesses one of the 64 symbols.
    """
    return max(0.0, symbols * (6 - loss / np.log(2)))


steps, lines = 120, []
adapters = {"all linear": "all-linear", "q, v": ["q_proj", "v_proj"], "v": ["v_proj"]}
for label, where in adapters.items():
    config = ln.LoraConfig(r=1, lora_alpha=8, target_modules=where)
    model = ln.get_peft_model(ln.load_model("tiny"), config, seed=0)
    adam, schedule = ln.AdamW(lr=1e-2, weight_decay=0), ln.WarmupCosine(steps, warmup=6)
    ln.train(model, [all_eight], adam, steps, schedule=schedule, max_grad_norm=1.0)
    bits = memorised(ln.evaluate(model, [all_eight]), rest.size)
    answers = ln.generate(model, names.tolist(), max_new_tokens=16)  # from the names alone
    pairs = zip(answers, rest.tolist(), strict=True)
    recited = sum(answer == string for answer, string in pairs)
    size = ln.costs.count(model).trainable
    lines.append({"adapter in": label, "parameters": size, "bits": bits})
    lines[-1] |= {"bits per parameter": bits / size, "strings recited": recited}
show(lines, dict(zip(lines[0], ("", ",", ".0f", ".2f", ""), strict=True)))

print("\nThe adapter in v: four strings, and its answers")
for string, answer in zip(rest[:4], answers[:4], strict=True):
    print(f"  {ln.data.decode(string)}   {ln.data.decode(np.array(answer))}")

# %% [markdown]
# The frozen model knows none of these strings, so every memorised bit is in $A$ and $B$. After only 120 steps, the table shows which adapter learns fastest. The table does not show which adapter could hold the most bits. To measure how many bits an adapter can hold, you must train until the loss no longer falls.
#
# The adapter in v alone did not memorise all bits in 120 steps. **Predict.** Does this adapter recite some strings completely, or does it know a part of each string?

# %%
model_in_v = model
parts = [ln.evaluate(model_in_v, [study.batch(string[None])]) for string in strings]
shares = [memorised(loss, 16) / (6 * 16) for loss in parts]
print("share of each string's bits: " + ", ".join(f"{share:.0%}" for share in sorted(shares)))

# %% [markdown]
# The adapter in the matrix v knows a part of each string.
#
# ## An adapter with more and more strings
#
# To measure the largest number of bits, the model must be small enough to train for thousands of steps. The study behind the next figure uses a base model with two layers of width 32. This base was trained to repeat random strings, so it knows the alphabet and can predict a symbol with certainty.
#
# **Predict.** An adapter of rank 4 is trained on more and more strings, always for the same number of steps. If there are too many strings, the adapter cannot recite all of them. When still more strings are added, does the number of memorised bits rise, stay the same or fall?

# %%
plots.memory_knee(table);

# %%
display(Markdown(findings.say("capacity.held.few", "capacity.held.many")))

# %% [markdown]
# With few strings, the adapter memorises all offered bits. With more strings, the adapter memorises a slowly falling share of the offered bits, and the line has no sharp bend. At the last point of the line, the adapter holds more bits than at the point before. So the largest number of memorised bits is not the capacity of the adapter. This number is only the largest number of bits that was measured.
#
# ## Does twice the rank hold twice the bits?
#
# **Predict.** If the rank is doubled, the adapter has twice as many parameters. Does the adapter then hold twice as many bits?

# %%
plots.capacity_chart(table);

# %%
low, middle, high = claims.lowest_middle_highest(table)
names = (f"exponent.r{low}-r{middle}", f"exponent.r{middle}-r{high}", f"against_full.r{high}")
display(Markdown(findings.say(*(f"capacity.{name}" for name in names))))

# %% [markdown]
# An adapter of twice the rank holds nearly twice as many bits. If the exponent were 1, an adapter of twice the rank would hold exactly twice as many bits.
#
# ## Free parameters
#
# Different $A$ and $B$ can give the same $\Delta W$, so not all parameters of $A$ and $B$ are free. The product $BA$ is the same matrix as $(BR)(R^{-1}A)$ for every invertible $R$ (r, r). So of the $r(\text{in} + \text{out})$ parameters of one layer, only $r(\text{in} + \text{out} - r)$ are free. At $r = \min(\text{in}, \text{out})$ there are $\text{in} \cdot \text{out}$ free parameters. The whole matrix $W$ has the same number of parameters.
#
# **Predict.** The next table shows the bits per trained parameter and the bits per free parameter, for ranks from 1 to 16. At which rank do these two numbers differ most?

# %% jupyter={"source_hidden": true}
# prints, for each method, bits per trained and per free parameter, and how loose each bound is
lines = []
for r in (1, 2, 4, 8, 16, None):
    method = ("lora", r) if r else ("full", None)
    name = f"lora.r{r}" if r else "full"
    lines.append({"method": f"LoRA r = {r}" if r else "full fine-tuning"})
    lines[-1] |= {
        "bits/parameter": findings[f"capacity.bits.{name}"].value,
        "bits/free parameter": findings[f"capacity.free_bits.r{r}"].value if r else None,
        "of the offer": claims.of_offered(table, *method),
        "passes": claims.times_seen(table, *method),
        "lost at half": claims.lost_at_half(table, *method),
    }
formats = ("", ".2f", ".2f", ".0%", ",", ".0%")
show(lines, dict(zip(lines[0], formats, strict=True)))

# %% [markdown]
# All numbers of bits in this table are lower bounds. Some of these lower bounds are further below the true capacity than others. Three columns of the table show why you must not compare the rows.
#
# - *of the offer* is the share of the offered bits that the model memorised. Full fine-tuning memorised most of the offered bits, so with more strings it could memorise more bits.
# - *passes* is the number of times that a run saw each string. All runs have the same number of steps. The runs with higher ranks were trained on more strings, so these runs saw each string less often.
# - *lost at half* compares each run with a run of half as many steps. Of the bits that the longer run memorised, the column shows the share that the shorter run did not memorise. From rank 2 on, this share grows with the rank. So at higher ranks, longer training would add more bits.
#
# Two papers measured how many bits whole models hold after far longer training than in this study. [Allen-Zhu and Li (2024)](https://arxiv.org/abs/2404.05405) report 2 bits of knowledge per parameter. [Morris et al. (2025)](https://arxiv.org/abs/2505.24832) report about 3.6 bits of random strings per parameter.
#
# ## Can you choose the rank by its capacity?
#
# [Schulman et al. (2025)](https://thinkingmachines.ai/blog/lora/) compare the bits in the data with the bits that an adapter can hold. The authors report that LoRA is as good as full fine-tuning if the data contain fewer bits than the adapter can hold. If the data contain more bits, LoRA is worse than full fine-tuning. This notebook does not test the authors' rule. But you can compute what the rule predicts for the training runs of notebook 05. If a text has $n$ tokens and the base has a mean loss of $L$ nats per token on the text, the text contains at most $n\,L / \ln 2$ bits.
#
# **Predict.** Can an adapter of rank 1 hold all bits of the text that a run of notebook 05 reads?

# %%
bits_per_byte = ln.evaluate(ln.load_model("tiny"), heldout_batches()) / np.log(2)
text = 200 * 8 * 128  # bytes: steps × rows × tokens of a run in notebook 05
config = ln.LoraConfig(r=1, target_modules="all-linear")
parameters = ln.costs.count(ln.get_peft_model(ln.load_model("tiny"), config)).trainable
held = parameters * findings["capacity.bits.lora.r1"].value
print(f"bits in the text:  {bits_per_byte * text:>7,.0f}  ({bits_per_byte:.1f} bits per byte)")
print(f"bits in rank 1:    {held:>7,.0f}  ({parameters:,} parameters)")
display(Markdown(findings.say("convergence.recovered.all-linear.r1.steps200")))

# %% [markdown]
# The text has many times more bits than an adapter of rank 1 can hold. Yet an adapter of rank 1 reaches most of the gain of full fine-tuning on held-out text. Most bits of the training text do not help to predict the held-out text. So, at least in these runs, the number of bits in the text does not tell you which $r$ you need. Choose $r$ by the held-out loss ([notebook 06](06_hyperparameters.ipynb)).
#
# ## Recap
#
# - A model can predict a random string only if it has memorised the string. So the loss on random strings gives the number of memorised bits.
# - At every rank that was tried, a trained parameter of LoRA holds more than one bit. The measured numbers of bits are lower bounds.
# - The number of strings that an adapter can memorise has no sharp limit. An adapter that cannot recite all strings knows a part of each string.
# - The number of bits in a text does not tell you which rank you need. Most bits of a text do not help to predict other texts.
#
# ## Three questions
#
# 1. A model has a mean loss of $\ln 8$ nats per symbol on 1,000 random symbols from the alphabet of 64 symbols. How many bits has the model memorised?
#
# <details><summary>Answer</summary>
#
# The loss equals $\ln 8 / \ln 2 = 3$ bits per symbol, so the model has memorised $6 - 3 = 3$ bits per symbol. For all 1,000 symbols the model has memorised 3,000 bits.
#
# </details>
#
# 2. Why do the symbols of a string's name not count as memorised bits?
#
# <details><summary>Answer</summary>
#
# The name is given as the prompt, so that the model knows which string to continue. The model does not have to predict the name.
#
# </details>
#
# 3. Why is the measured number of memorised bits always a lower bound for the capacity?
#
# <details><summary>Answer</summary>
#
# With more training steps, a better learning rate or more strings, the model might memorise more bits. No measurement shows that the model cannot memorise more bits.
#
# </details>
#
# ## Try
#
# 1. Use rank 4 instead of rank 1 for the adapter in v, with the same 120 steps. How many of the eight strings does this adapter recite?
#
# <details><summary>Hint</summary>
#
# Set `r=4` and `lora_alpha=32` in the cell that trains, so that $\alpha/r$ stays the same. The adapter of rank 4 has four times as many parameters as the adapter of rank 1.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With rank 4 the adapter recites one of the eight strings and holds 579 of the 768 bits. With rank 1 the adapter recites no string and holds 234 bits. So the adapter has four times as many parameters, but holds only two and a half times as many bits. The reason is that 120 steps are far too few for the larger adapter.
#
# </details>
#
# 2. Train the adapter of rank 1 in v for 480 steps instead of 120. What limits this adapter: the rank or the training?
#
# <details><summary>Hint</summary>
#
# Change `steps` to 480. Divide the bits by the number of parameters, and compare the result with the table of the section "Free parameters".
#
# </details>
#
# <details><summary>Answer</summary>
#
# After 480 steps the adapter still recites no string, but it holds 440 bits instead of 234 bits. So the number of training steps limited the adapter, and the rank did not. But 440 bits are only 0.46 bits per parameter. The bits per parameter in the table are far higher, because the runs of the table had thousands of steps.
#
# </details>
#
# Continue with [QLoRA](07_qlora.ipynb).
