# TinyNews' grading of short news bulletins: notes first, then one grade from 1 to 5, with examples.
#     python evaluate.py config/evaluate_news.py --samples=out/news/samples.jsonl --provider=mistral

opening = r'.*?</h>'  # the opening of a reference is its headline

criteria = {'grade': 'as said above'}
scale = [1, 5]
prefill = '{"notes": "'  # the reply begins with the notes

template = '''
A small language model was given a headline and wrote a news bulletin for it. Give it one grade:

5: every sentence is correct, follows from the one before and belongs to the headline; it could be read out on the radio
4: one slip of the pen or one sentence beside the point
3: the topic is kept, but sentences contradict or repeat one another
2: single sentences make sense, the whole does not
1: not even that

Some examples, with the notes and the grade that they deserve:

"bakers raise price of bread</h> bakers in a northern town raised the price of bread last week. they said that flour had become dearer
since the dry summer. shoppers complained, but most of them bought their usual loaf."
{"notes": "All three sentences are about the price of bread, each gives a reason or a consequence of the last. No mistakes.", "grade": 5}

"ferry stuck on sandbank for a night</h> a ferry with ninety people on board ran onto a sandbank in the evening. the passengers were
taken to the island by the fire. the ferry left the port on time and no one was on board."
{"notes": "The first sentence fits. 'By the fire' makes no sense, and the last sentence contradicts the first.", "grade": 3}

"museum finds lost painting</h> the painting of the river said that the painting would not rain. museum of the was found in 40 percent."
{"notes": "Words of the topic return, but neither sentence means anything.", "grade": 1}

The bulletin, headline first, is this:
{story}
Look at it sentence by sentence in the notes, then grade, from {low} to {high}. Answer with JSON only: {"notes": "…", "grade": 0}
'''
