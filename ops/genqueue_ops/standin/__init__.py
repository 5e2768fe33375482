"""A server that speaks Text Generation Inference's HTTP protocol without a GPU.

Tests, benchmarks, chaos runs and the demo put it where a TGI would be.  Start with
``server.serve`` (in a test) or ``cli.tgi_standin`` (on the command line);
``prose.expected_text`` says what it will answer.

    prose.py     * the scripted text, which any piece of itself continues
    script.py    * pace, length, faults, and the directive that sets them inside a prompt
    protocol.py  * what parses, what is valid, the words of a refusal
    decoding.py  * when a sequence ends
    wire.py      * answers and events as bytes
    chat.py      * chat requests and their template
    engine.py      what a model is to the HTTP side; scripted.py and llama.py are two
    app.py         the routes
    server.py, cli.py   start and stop

Starred modules are pure.
"""
