# The stories of the demo: Hindi, from the grammar, so that no key and no network is needed.

language = 'hindi'
provider = 'grammar'
total = 20000
out = 'data/demo/stories.jsonl'
