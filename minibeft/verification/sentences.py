"""A few plain sentences of different lengths: what a model is run on when the user gives no text of their own."""

SENTENCES = (
    "The film is a quiet marvel from its first frame to its last.",
    "It was dull.",
    "Nobody expected the second half to be so much better than the first.",
    "A clumsy script, saved now and then by two fine actors.",
    "Rain fell on the harbour while the boats came home one by one.",
    "I would see it again tomorrow!",
    "What the story lacks in surprise it makes up for in warmth, wit and a very good dog.",
    "The committee met on Tuesday and decided nothing.",
)
