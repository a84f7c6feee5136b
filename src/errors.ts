/** The two kinds of errors that people who call us read. */

/** A text has the wrong form. The message says what was expected, as in "an integer from 0 to 9". */
export class Expected extends Error {}

/** The user asked for something that cannot be done: one line for them, exit code 2. */
export class UsageError extends Error {}
