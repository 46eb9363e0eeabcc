/* What holder.c has for the timer of the sampler. */
#ifndef STAGETRACE_HOLDER_H
#define STAGETRACE_HOLDER_H

#include <Python.h>
#include <stdbool.h>

/* Find out whether the holder of the GIL can be looked at here; with the GIL. */
void find_holder(void);
bool sees_holder(void);

/* Look at the thread that has the GIL, without it; return whether `holder_seen` has something until `forget_holder`. */
bool look_at_holder(void);
void forget_holder(void);

/* Return what was seen: how many nanoseconds ago, the ident of the thread, and places, the innermost first, each file,
 * name, qualified name, flags, line (0: none) and the frame's address, none where it ran on; or None. With the GIL. */
PyObject *holder_seen(void);

#endif
