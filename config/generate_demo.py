# The stories of the demo: Hindi, from the grammar, without a key or network. In a small world of words and characters,
# a small model generates sensible stories after minutes of training.

language = 'hindi'
provider = 'grammar'
total = 20000
world = 'demo'
out = 'data/demo/stories.jsonl'
