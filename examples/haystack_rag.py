"""Answer questions from documents: a Haystack pipeline whose language model is behind the queue.

pip install '.[haystack]'; python examples/haystack_rag.py 'Which river flows through Paris?'
"""

import sys

from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.generators.utils import print_streaming_chunk
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from genqueue.haystack import HuggingFaceAPIGenerator

TEMPLATE = """Answer from what is given, in one sentence.

{% for document in documents %}- {{ document.content }}
{% endfor %}
Question: {{ question }}
Answer:"""

documents = InMemoryDocumentStore()
documents.write_documents(
    [
        Document(content="Rome is the capital of Italy."),
        Document(content="Paris is the capital of France."),
        Document(content="The Seine flows through Paris."),
    ]
)

pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(documents, top_k=2))
pipeline.add_component("prompt", PromptBuilder(TEMPLATE, required_variables="*"))
pipeline.add_component(
    "llm",
    HuggingFaceAPIGenerator(
        generator="default",  # of the workers; or api_type and api_params as before
        generation_kwargs={"max_new_tokens": 60},
        stop_words=["\n"],
        streaming_callback=print_streaming_chunk,
    ),
)
pipeline.connect("retriever.documents", "prompt.documents")
pipeline.connect("prompt", "llm")

question = sys.argv[1] if len(sys.argv) > 1 else "Which river flows through Paris?"
found = pipeline.run({"retriever": {"query": question}, "prompt": {"question": question}})
print("\n", found["llm"]["meta"][0])
pipeline.close()
