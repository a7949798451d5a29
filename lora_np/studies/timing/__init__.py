"""How fast is a step, beside the peers?"""
