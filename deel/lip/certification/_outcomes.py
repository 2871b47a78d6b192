"""What a prediction names, and which leads it stands on.

Note [Leads of a prediction]

A prediction names some classes, its members. A lead is the difference of the
scores of a member and of a class that is none; see `Scores`.

The set of the k best classes stays where each member is ahead of each other
class: all leads have to be positive.

A group that has the best class keeps it where, for each class outside, some
member is ahead of that class: then the best of the members is ahead of all. It
need not be the same member for each class. So of the radii of the leads over
one class the largest counts, and of these the smallest over all classes. That
is never less than the radius of the best single member.
"""

import numpy as np

from deel.lip._validation import positive_int


class TopK:
    """The set of the best classes.

    Args:
        count: Integer, how many.
        classes: Integer, the number of scores.
    """

    def __init__(self, count, classes):
        self.count = positive_int("top_k", count)
        if self.count >= classes:
            raise ValueError(
                "Argument `top_k` must be less than the number of classes, "
                f"which is {classes}. Received: top_k={count}"
            )

    def members(self, values):
        """Classes that are predicted, the best first, `(samples, members)`."""
        if self.count == 1:
            return np.argmax(values, axis=1)[:, None]
        return np.argsort(-values, axis=1, kind="stable")[:, : self.count]

    def prediction(self, members):
        """What `Certificates` has as the prediction of these members."""
        return members.astype("int64")

    def of_labels(self, labels):
        """What `Certificates` has as labels."""
        return labels

    def over_each(self, leads):
        """What counts of the leads of all members over each class.

        Args:
            leads: Array `(samples, members, classes)`, of leads or what
                increases with them.

        Returns:
            Array `(samples, classes)`.
        """
        return np.min(leads, axis=1)


class BestClass(TopK):
    """The class with the best score; of a single score, its sign."""

    def __init__(self):
        super().__init__(1, 2)

    def prediction(self, members):
        return members[:, 0].astype("int64")


class Groups:
    """The group that has the best class.

    Args:
        groups: List of lists of class numbers.
        classes: Integer, the number of scores.
    """

    def __init__(self, groups, classes):
        try:
            listed = [[int(c) for c in group] for group in groups]
            all_classes = sorted(c for group in listed for c in group)
            is_whole = listed == [list(group) for group in groups]
        except (TypeError, ValueError):
            all_classes, is_whole = None, False
        if not is_whole or all_classes != list(range(classes)):
            raise ValueError(
                "Argument `groups` must be a list of lists that have each of "
                f"the classes from 0 to {classes - 1} once. "
                f"Received: groups={groups}"
            )
        if len(listed) < 2 or not all(listed):
            raise ValueError(
                "Expected two groups or more, and none that is empty. "
                f"Received: groups={groups}"
            )
        self._group_of = np.empty(classes, "int64")
        for number, group in enumerate(listed):
            self._group_of[group] = number
        longest = max(map(len, listed))
        # The first class of a group again, where others have more.
        self._members = np.array(
            [group + group[:1] * (longest - len(group)) for group in listed]
        )

    def members(self, values):
        """All classes of the group that has the best one."""
        return self._members[self._group_of[np.argmax(values, axis=1)]]

    def prediction(self, members):
        return self._group_of[members[:, 0]]

    def of_labels(self, labels):
        return self._group_of[labels]

    def over_each(self, leads):
        return np.max(leads, axis=1)


def outcome_of(top_k, groups, classes):
    """Returns what is predicted, from the arguments of `certify`.

    Args:
        top_k: Integer or None.
        groups: List of lists of integers, or None.
        classes: Integer, the number of scores.
    """
    if top_k is None and groups is None:
        return BestClass()
    if top_k is not None and groups is not None:
        raise ValueError(
            "Expected `top_k` or `groups`, not both. "
            f"Received: top_k={top_k}, groups={groups}"
        )
    if classes == 1:
        raise ValueError(
            "`top_k` and `groups` are about several classes. Received: a "
            "model with a single score"
        )
    return Groups(groups, classes) if top_k is None else TopK(top_k, classes)
