"""Checks of records: audit without computing, replay, judgement."""
