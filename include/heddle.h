/* include/heddle.h */
