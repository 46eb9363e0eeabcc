/* Many visits become few: request/stages.py in C. */
#include "record.h"

enum { MAX_WIRE = 8, SHARE = 10, MAX_BEFORE = 32, MAX_STAGE_NAMES = 32 }; /* as in segments.py */

static PyObject *common;

int fill_coalescing(void) {
    static const char *const where[1][2] = {{"stagetrace.request.stages", "common"}};
    return import_all(&common, where, 1);
}

/* The stages that have been summed until now, of which there are only so many. */
typedef struct {
    int of[MAX_STAGE_NAMES], count;
    bool is_limited;
} Summed;

static int stage_summed(Summed *summed, int stage) {
    if (!summed->is_limited) return stage;
    for (int i = 0; i < summed->count; i++)
        if (summed->of[i] == stage) return stage;
    if (summed->count == MAX_STAGE_NAMES) return OTHER;
    return summed->of[summed->count++] = stage;
}

static Segment copied(const Segment *segment) {
    Py_XINCREF(segment->attributes);
    Py_XINCREF(segment->context);
    Py_XINCREF(segment->link);
    return *segment;
}

/* Let a segment have the attributes alone that others have as well. */
static int keep_common(Segment *group, PyObject *attributes) {
    if (group->attributes == attributes || group->attributes == NULL) return 0;
    PyObject *both = attributes ? PyObject_CallFunctionObjArgs(common, group->attributes, attributes, NULL) : NULL;
    int any = both ? PyObject_IsTrue(both) : attributes ? -1 : 0;
    set_object(&group->attributes, any > 0 ? both : NULL);
    Py_XDECREF(both);
    return any < 0 ? -1 : 0;
}

/* Lay groups end to end from `at` on, of which `end` is still the length. */
static void lay(Segment *groups, int count, int64_t at) {
    bool is_transformed = false;
    int gap = count;
    for (int i = 0; i < count; i++) {
        if (!groups[i].explicit && groups[i].stage == GAP) gap = i;
        if (!groups[i].explicit && is_transform(groups[i].stage)) is_transformed = true;
    }
    if (is_transformed && gap < count) { /* the gap goes last: all of it may be a model that follows on a transform */
        Segment moved = groups[gap];
        memmove(&groups[gap], &groups[gap + 1], (size_t)(count - gap - 1) * sizeof *groups);
        groups[count - 1] = moved;
    }
    for (int i = 0; i < count; i++) {
        groups[i].start = at;
        at = groups[i].end = at + groups[i].end;
    }
}

/* Put a run of segments into `laid`, one for each stage if any has more than one; return how many these are, or -1. */
static int sum_up(const Segment *run, int count, Summed *summed, Segment *laid) {
    int groups = 0;
    for (int i = 0; count > 1 && i < count; i++) {
        const Segment *one = &run[i];
        int64_t took = one->end - one->start, longest = one->visits ? one->longest : took;
        int stage = stage_summed(summed, one->stage), at = 0, visits = one->visits ? one->visits : 1;
        while (at < groups && (laid[at].stage != stage || laid[at].explicit != one->explicit)) at++;
        if (at == groups) {
            laid[groups++] = (Segment){.end = took, .longest = longest, .stage = stage, .visits = visits,
                                       .explicit = one->explicit,
                                       .attributes = stage == one->stage ? Py_XNewRef(one->attributes) : NULL};
            continue;
        }
        laid[at].end += took; /* its length, until it is laid in its place */
        laid[at].visits += visits;
        if (longest > laid[at].longest) laid[at].longest = longest;
        if (keep_common(&laid[at], one->attributes) < 0) {
            let_go_segments(laid, groups);
            return -1;
        }
    }
    if (count > 1 && groups < count) {
        lay(laid, groups, run->start);
        return groups;
    }
    let_go_segments(laid, groups);
    for (int i = 0; i < count; i++) laid[i] = copied(&run[i]);
    return count;
}

/* Put segments into `few`, each run of those that may be summed as `sum_up` does. A visit of `most` nanoseconds or more
 * stays as it is; -1: however long. `cuts` ends with 0. Return how many they are, or -1. */
static int sum_runs(const Segment *segments, int count, const int64_t *cuts, int64_t most, Summed *summed, Segment *few) {
    int into = 0, run = 0; /* [run, i) is not laid yet */
    for (int i = 0; i <= count; i++) {
        const Segment *one = &segments[i];
        bool ends = i == count, alone = false;
        if (i < count) {
            for (; *cuts && one->start >= *cuts; cuts++) ends = true;
            alone = (most >= 0 && one->end - one->start >= most && !one->visits) || one->context != NULL
                    || one->link != NULL || (one->start < *cuts && *cuts < one->end);
        }
        if (ends || alone) {
            int laid = sum_up(&segments[run], i - run, summed, &few[into]);
            if (laid < 0) {
                let_go_segments(few, into);
                return -1;
            }
            into += laid;
            run = i;
        }
        if (alone) {
            few[into++] = copied(one);
            run = i + 1;
        }
    }
    return into;
}

/* Return where a request begins to wait and to send, or receive, in turn; -1 if it does not. */
static int first_chunk(const Segment *segments, int count) {
    for (int stage = SEND; stage <= RECEIVE; stage++) {
        int visits = 0, first = -1;
        bool is_summed = false;
        for (int i = 0; i < count; i++) {
            if (segments[i].stage != stage) continue;
            if (!visits++) first = i;
            if (segments[i].visits) is_summed = true;
        }
        if (visits > MAX_WIRE || is_summed) return first;
    }
    return -1;
}

/* `coalesced`: return how many there are then, or -1. They are in `few`, for the caller to free, as much room as there
 * was for all; that is NULL where all stay as they are. */
int coalesce(const Segment *segments, int count, const int64_t *cuts, int limit, Segment **few) {
    static const int64_t no_cuts[] = {0};
    bool is_many = count > limit;
    int first = is_many || count > MAX_WIRE ? first_chunk(segments, count) : -1;
    *few = NULL;
    if (count == 0 || (!is_many && first < 0)) return count;
    if (first < 0 || (is_many && first >= MAX_BEFORE && MAX_BEFORE < limit)) first = 0;
    Summed summed = {.is_limited = is_many};
    int64_t whole = (segments[count - 1].end - segments[0].start) / SHARE;
    Segment *summed_up = PyMem_Malloc((size_t)count * sizeof *summed_up), *again = NULL;
    int left = summed_up ? sum_runs(&segments[first], count - first, cuts, whole > 1 ? whole : 1, &summed, &summed_up[first])
                         : -1;
    for (int i = 0; left >= 0 && i < first; i++) summed_up[i] = copied(&segments[i]);
    if (left >= 0) left += first;
    if (left > limit) { /* so there were more than that */
        int before = left;
        again = PyMem_Malloc((size_t)count * sizeof *again);
        left = again ? sum_runs(summed_up, before, no_cuts, -1, &summed, again) : -1;
        let_go_segments(summed_up, before);
    }
    if (left < 0 && !PyErr_Occurred()) PyErr_NoMemory();
    if (left < 0 || again != NULL) PyMem_Free(summed_up);
    if (left < 0) PyMem_Free(again);
    else *few = again ? again : summed_up;
    return left;
}
