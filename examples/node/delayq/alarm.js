// Sleep that ends early when somebody rings.

/** No timer of Node's lasts longer (ms). */
const LONGEST = 2 ** 31 - 1;

export class Alarm {
  #rung = false;
  #ring = () => {};

  /** End the sleep; or the next one before it begins: what rings while nobody sleeps is not lost. */
  ring() {
    this.#rung = true;
    this.#ring();
  }

  /** Sleep for so many seconds, or until somebody rings. */
  async sleep(seconds) {
    if (!this.#rung) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, Math.min(Math.ceil(seconds * 1000), LONGEST));
        this.#ring = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#rung = false;
  }
}
