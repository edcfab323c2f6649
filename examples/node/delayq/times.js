// Scripts take times as whole microseconds: of the epoch, or with a "+" from now on, by Redis's clock.

const MILLISECOND = 1000;
const SECOND = 1000 * MILLISECOND;

/** Seconds in microseconds. */
export const micros = (seconds) => Math.round(seconds * SECOND);

/**
 * When something is due, as scripts take it: at a Date, or after a delay in seconds; neither: now.
 * @param {{at?: Date, delay?: number}} when
 */
export function dueOf({ at, delay } = {}) {
  if (at !== undefined && delay !== undefined) throw new TypeError("give at or delay, not both");
  const due = at === undefined ? micros(delay ?? 0) : at.getTime() * MILLISECOND;
  if (!Number.isSafeInteger(due)) throw new TypeError(`no such time: ${at ?? delay}`);
  return at === undefined ? `+${Math.max(due, 0)}` : `${Math.max(due, 0)}`;
}

/** Microseconds of the epoch as a Date, which is exact to a millisecond. */
export const dateOf = (us) => new Date(us / MILLISECOND);
