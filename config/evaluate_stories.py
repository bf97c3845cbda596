# The grading of the Regional TinyStories paper (https://arxiv.org/abs/2504.07989): children's stories that continue
# an opening.
#     python evaluate.py config/evaluate_stories.py --samples=out/hindi/samples.jsonl --provider=mistral
# The template is plain text: edit it. {opening} and {continuation} are the story, {criteria} is the list below,
# {low} and {high} are the scale. After an edit it is another rubric, and every story is graded again.

criteria = {
    'context_awareness': 'it continues the opening with the same people, places and things, and does not contradict itself',
    'completeness': 'it has a beginning, a middle and an end, and what was begun is finished',
    'grammar': 'spelling, agreement, forms of words, punctuation',
    'fluency': 'it reads smoothly and naturally, as a good author of that language would write for a child',
    'creativity': 'it has ideas, turns and images of its own',
    'overall': 'how good a story it is for a child of five to seven',
}
scale = [1, 10]

template = '''
You grade stories for children of five to seven. Language models of very different sizes wrote them.
A model was given this opening:
{opening}
It continued:
{continuation}
Grade only the continuation, in the language that it is written in, from {low} (useless) to {high} (as a good author
would write it):

{criteria}

Use the whole scale: {low} to 3 for what makes no sense, 4 to 6 for what can be followed but has plain faults,
7 and 8 for what is good, 9 and {high} for what needs no change.

Two examples, for other stories:

Opening: "Mia found a red button on the stairs."
Continuation: "She asked every neighbor on the way up. On the top floor old Mr. Bell looked at his coat and laughed.
'So that is why I was cold!' he said. Mia held the thread while he sewed it on."
{"notes": "Complete, and the button has a reason to be there. The middle is thin. Worst sentence: 'She asked every neighbor on the way up.'", "context_awareness": 9, "completeness": 8, "grammar": 10, "fluency": 8, "creativity": 7, "overall": 8}

Opening: "Tom wanted to bake bread for his mother."
Continuation: "He put the flour in the oven and the bread was sad. Then the dog said that the river is Tuesday. They
was happy and"
{"notes": "The bread is kept for one sentence, then nothing follows from anything, and it breaks off. Worst sentence: 'Then the dog said that the river is Tuesday.'", "context_awareness": 3, "completeness": 1, "grammar": 5, "fluency": 3, "creativity": 2, "overall": 2}

First say in two sentences, in English, what is good and what is bad, and quote the worst sentence. Then grade.
Answer with JSON only:
{"notes": "…", "context_awareness": 0, "completeness": 0, "grammar": 0, "fluency": 0, "creativity": 0, "overall": 0}
'''
