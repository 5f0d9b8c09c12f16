"""cusa-store serve: search over a finished store, for people in a browser and for programs.

1. `served_store` holds the store as it is now: what its models search, and how; a store made anew is noticed;
2. `model_thread` owns the models, and encodes what many ask for at once in one batch;
3. `queries` says what may be asked, `answering` answers it;
4. `search_page`, `json_api`, `listed_pairs` and `clip_retrieval` are the ways to ask: a page, JSON, the lists of
   missing and suspect pairs, and the protocol of clip-retrieval;
5. `guards` refuses other sites' scripts and bodies that are too large or too slow; `server` puts all together.
"""
