# A story from the demo's model, with three words that it is to use.

out_dir = 'out/demo'
words = 'पतंग, दौड़ना, बहादुर'
temperature = 0.5
