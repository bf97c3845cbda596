# A story from the demo's model, with three words that it is to use.

out_dir = 'out/demo'
words = 'पतंग, कूदना, नीला'
temperature = 0.3
