# The grading of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989): children's stories that continue
# an opening.
#     python evaluate.py config/evaluate_stories.py --samples=out/hindi/samples.jsonl --provider=mistral
# The template is plain text: edit it. {opening} and {continuation} are the story, {criteria} is the list below,
# {low} and {high} are the scale. After an edit it is another rubric, and every story is graded again.

criteria = {
    'context_awareness': 'does it go on from the opening, with the same people, places and things, and keep to what it told before',
    'completeness': 'does it have a beginning, a middle and an end, and does what was begun come to a close',
    'grammar': 'spelling, agreement, forms of words, punctuation, as the language has them',
    'fluency': 'does it read smoothly and naturally, as a good writer of that language would put it for a child',
    'creativity': 'are there ideas, turns and pictures of its own, or only what every such story has',
    'overall': 'all in all, how good a story it is for a child of five to seven',
}
scale = [1, 10]

template = '''
You grade stories for children of five to seven, written by language models of very different sizes. Here is the opening that a model was given:
{opening}
And here is how it went on:
{continuation}
Grade only how it went on, in the language that it is written in, on each of these, from {low} (useless) to {high} (as a good author would have it):

{criteria}

Use the whole scale: {low} to 3 for what makes no sense, 4 to 6 for what can be followed but has plain faults, 7 and 8 for what is good, 9 and {high} for
what needs no change. First say in two sentences, in English, what is good and what is bad, then grade. Answer with JSON only:
{"notes": "…", "context_awareness": 0, "completeness": 0, "grammar": 0, "fluency": 0, "creativity": 0, "overall": 0}
'''
