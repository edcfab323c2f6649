// Moves the jobs of a topic to a Redis list when they are due, until Ctrl-C or SIGTERM. Any number of these may run.
import { Alarm } from "./delayq/alarm.js";
import { argumentsOf, withRedis } from "./delayq/connection.js";
import { listen, LONGEST_SLEEP } from "./delayq/ear.js";
import { DelayQueue } from "./delayq/queue.js";

const [topic, list] = argumentsOf("node dispatch.js <topic> <list>", 2);

// One look: what is due goes to the list, and what a dead consumer had reserved waits again. Returns how many jobs were
// moved, and for how long (s) there is nothing to do.
async function dispatchOnce(queue) {
  const { moved, left, untilNext } = await queue.dispatch(list);
  const untilExpiry = await queue.untilExpiry();
  if (untilExpiry === 0) await queue.requeue();
  return [moved, left ? 0 : Math.min(untilNext, untilExpiry, LONGEST_SLEEP)];
}

await withRedis(async (redis) => {
  const queue = new DelayQueue(redis, topic);
  const alarm = new Alarm();
  let [total, stopping] = [0, false];
  const stop = () => {
    stopping = true;
    alarm.ring();
  };
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, stop);
  const ear = listen(queue, () => alarm.ring(), console.error);
  console.log(`dispatching ${topic} to ${list}`);
  while (!stopping) {
    try {
      const [moved, seconds] = await dispatchOnce(queue);
      total += moved;
      await alarm.sleep(seconds);
    } catch (error) {
      console.error(`cannot dispatch: ${error.message}; again in 1 s`);
      await alarm.sleep(1);
    }
  }
  ear.disconnect();
  console.log(`${total} jobs moved`);
});
