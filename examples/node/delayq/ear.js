// Hears when there is something to look at earlier than one knew.

/** Look again after so many seconds, whatever one has heard: a wake-up is lost where a connection breaks. */
export const LONGEST_SLEEP = 5;

/**
 * Call `ring` whenever a put or a move has made its job the earliest one.
 * @returns a connection, to be disconnected at the end
 */
export function listen(queue, ring, log) {
  const ear = queue.redis.duplicate({ maxRetriesPerRequest: null });
  ear.on("error", () => {}); // the queue's own connection says it
  ear.on("ready", ring); // ioredis subscribes again after a lost connection; something may have been said meanwhile
  ear.on("message", ring);
  ear.subscribe(queue.keys.wake).then(ring, (error) => {
    log(`cannot listen, looks every ${LONGEST_SLEEP} s only: ${error.message}`);
  });
  return ear;
}
