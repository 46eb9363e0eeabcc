/* The marks of a request as they lie in memory: `_marks.c` makes them, `sla/_ending.c` looks into them. */
#ifndef STAGETRACE_MARKS_H
#define STAGETRACE_MARKS_H

typedef struct {
    PyObject_HEAD
    PyObject *log;   /* a list of events */
    PyObject *clock; /* NULL: the wall clock */
    /* What a request's end looks at; None until something happens. */
    PyObject *tiler, *presumed, *errands, *stream, *disconnect, *notes, *added, *probability, *identity;
    char closed, bound, is_unsorted, held;
} Marks;

#endif
