"""
Trie over the characters of labels.
"""

from __future__ import annotations

from returnn.util._bpe.markers import BpeOpts, BpePostMergeSymbol

__all__ = ["PrefixTree"]

_DEFAULT_OPTS = BpeOpts(label_postfix_merge_symbol=BpePostMergeSymbol)


class PrefixTree:
    """
    Node of a trie over the characters of labels; the tree is known by its root.

    ``arcs``: character (or marker symbol) -> node. ``finished``: a label ends here.
    ``bpe_finished``: a label that consists of this prefix and the postfix marker exists.
    ``word_finished``: a label ends here that ends a word, i.e. has no postfix marker.
    """

    __slots__ = ("prefix", "root", "opts", "arcs", "finished", "bpe_finished", "word_finished")

    def __init__(self, prefix: str = "", root: PrefixTree | None = None, *, opts: BpeOpts | None = None) -> None:
        """
        :param prefix: text from the root to this node
        :param root: None if this is the root
        :param opts: default: those of the root, else the postfix marker ``@@``
        """
        self.prefix = prefix
        self.root: PrefixTree = self if root is None else root
        self.opts: BpeOpts = opts or (root.opts if root is not None else _DEFAULT_OPTS)
        self.arcs: dict[str, PrefixTree] = {}
        self.finished = False
        self.bpe_finished = False
        self.word_finished = False

    def add(self, label: str) -> None:
        """
        :param label: added below this node, normally the root. Without text (empty or only the postfix marker): ignored
        """
        post, word_prefix = self.opts.label_postfix_merge_symbol, self.opts.word_prefix_symbol
        arcs: list[str] = []
        if word_prefix is not None and label.startswith(word_prefix):
            arcs.append(word_prefix)
            label = label[len(word_prefix) :]
        is_inner = post is not None and label.endswith(post)
        if post is not None and is_inner:
            label = label[: -len(post)]
        arcs.extend(label)
        if not arcs:
            return
        node = self
        for arc in arcs:
            node = node._add_arc(arc)
        if post is not None and is_inner:
            node.bpe_finished = True
            node = node._add_arc(post)
        else:
            node.word_finished = True
        node.finished = True

    def _add_arc(self, arc: str) -> PrefixTree:
        node = self.arcs.get(arc)
        if node is None:
            node = self.arcs[arc] = PrefixTree(self.prefix + arc, self.root, opts=self.opts)
        return node

    def start_node(self) -> PrefixTree | None:
        """:return: where a word starts: the root, or its arc for the word prefix; None if there is none"""
        word_prefix = self.opts.word_prefix_symbol
        return self.root if word_prefix is None else self.root.arcs.get(word_prefix)
